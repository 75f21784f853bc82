# SPDX-License-Identifier: MIT
"""Use of a dense static affinity, learned on one grid, on another.

The values are resized to the grid it was learned on, mixed there, and the result is resized back. All three steps are
linear, so together they are an affinity again:

    A' = R(new ← old) A R(old ← new)

R is bicubic, antialiased resizing, as timm resizes position embeddings; its rows sum to 1, so constant values are
answered as before. Prefix tokens (a class token) have no place on the grid and keep their rows and columns.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

Grid = tuple[int, int]


def resize_affinity(affinity: Tensor, old_grid: Grid, new_grid: Grid, num_prefix_tokens: int = 0) -> Tensor:
    """A dense affinity (M, P + H·W, P + H·W) of `old_grid` for `new_grid`; P is `num_prefix_tokens`.

    Returns:
        (M, P + H'·W', P + H'·W'), dtype and device as given; the affinity itself where the grids are equal.

    Raises:
        ValueError: the affinity is none of `old_grid`, or `new_grid` is no grid.
    """
    old_grid, new_grid = tuple(old_grid), tuple(new_grid)
    if len(new_grid) != 2 or min(new_grid) < 1:
        raise ValueError(f"new_grid: expected (H, W), two integers of at least 1, got {new_grid}")
    tokens = num_prefix_tokens + old_grid[0] * old_grid[1]
    if affinity.ndim != 3 or tuple(affinity.shape[1:]) != (tokens, tokens):
        raise ValueError(f"affinity: expected (M, {tokens}, {tokens}) for {old_grid}, got {tuple(affinity.shape)}")
    weights = resize_weights(affinity, old_grid, new_grid, num_prefix_tokens)
    return resize_tokens(weights, old_grid, new_grid, num_prefix_tokens, dim=1)


def resize_weights(weights: Tensor, old_grid: Grid, new_grid: Grid, num_prefix_tokens: int = 0) -> Tensor:
    """Rows of weights over tokens (…, P + H·W), applied to values of `new_grid` resized to `old_grid`."""
    if old_grid == new_grid:
        return weights
    return weights @ _resizing(new_grid, old_grid, num_prefix_tokens, weights)


def resize_tokens(y: Tensor, old_grid: Grid, new_grid: Grid, num_prefix_tokens: int = 0, *, dim: int = -1) -> Tensor:
    """Results on the tokens of `old_grid`, which dimension `dim` counts, resized to `new_grid`."""
    if old_grid == new_grid:
        return y
    matrix = _resizing(old_grid, new_grid, num_prefix_tokens, y)
    return (y.transpose(dim, -1) @ matrix.T).transpose(dim, -1).contiguous()


def _resizing(old_grid: Grid, new_grid: Grid, num_prefix_tokens: int, like: Tensor) -> Tensor:
    """R(new ← old), (P + H'·W', P + H·W): what resizing does to each unit vector."""
    tokens = old_grid[0] * old_grid[1]
    units = torch.eye(tokens, dtype=torch.float64, device=like.device).view(tokens, 1, *old_grid)
    resized = F.interpolate(units, new_grid, mode="bicubic", antialias=True, align_corners=False).flatten(1).T
    prefix = torch.eye(num_prefix_tokens, dtype=torch.float64, device=like.device)
    return torch.block_diag(prefix, resized).to(like.dtype)
