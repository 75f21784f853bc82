# SPDX-License-Identifier: MIT
"""The affinity matrices of one layer for one input, row by row."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..modules import ContextAggregation
from ..modules.validation import check_grid, check_image

TERMS = ("dynamic", "static", "mixed")


class LayerAffinities:
    """With what a `ContextAggregation` layer weighs the values of one input.

        Y_m = A_m V_m + beta · local_bias        A = alpha · A_dynamic + beta · A_static
        A_dynamic = softmax(Q Kᵀ / √D)           A_static[i, j] = w[c, j − i] + affinity[m, i, j]

    Only rows that are asked for are computed, so N = H·W may be large. All terms have the shape (B, M, F, rows, N),
    with 1 in the place of B where the input does not matter. F is 1 where a head has one matrix; a local affinity has
    one for each channel, so F is D there.

    Args:
        layer: any but one with `hidden_tokens`. Its parameters are used as they are, in the dtype of `x`.
        x: what the layer is called with, (B, C, H, W) or, with prefix tokens, (B, C, P + H·W, 1).
        grid_size: (H, W), for prefix tokens without a dense affinity; everything else knows its grid.

    Attributes:
        alpha, beta: the factors of the terms; 1.0 for one that is alone, None for one that is not there.
        grid_size: (H, W).
        num_prefix_tokens: P; tokens are P prefix tokens, then the grid by rows.
        alone: "dynamic" or "static" where "mixed" is that term and nothing else; None for a layer of both.
        filters: (M, D, kh, kw), the depthwise filters where they are all of "mixed"; None elsewhere.
        elements_per_row: size of one row of "mixed", B · M · F · N, to choose how many to ask for.

    Raises:
        ValueError: the layer has no affinity matrix, or the input or `grid_size` does not fit it.
    """

    @torch.no_grad()
    def __init__(self, layer: ContextAggregation, x: Tensor, grid_size: tuple[int, int] | None = None) -> None:
        reason = why_no_affinity(layer)
        if reason is not None:
            raise ValueError(f"layer: expected one with affinity matrices, got {reason}")
        check_image(x, layer.dim)
        check_grid(x, layer.grid_size, layer.num_prefix_tokens)
        self.num_heads = layer.num_heads
        self.num_prefix_tokens = layer.num_prefix_tokens
        self.grid_size = _grid_of(layer, x, grid_size)
        alpha, beta = layer.mixing_weights()
        self.alpha = float(alpha) if layer.dynamic else None
        self.beta = float(beta) if layer.static else None
        self.device = x.device
        self.alone = None if layer.dynamic and layer.static else "dynamic" if layer.dynamic else "static"
        is_filter = self.alone == "static" and layer.affinity is None
        self.filters = layer.local_weight.unflatten(0, (layer.num_heads, -1)) if is_filter else None
        matrices = 1 if layer.local_weight is None else layer.head_dim
        self.elements_per_row = matrices * layer.num_heads * x[:, 0].numel()
        self._local_weight, self._affinity = layer.local_weight, layer.affinity
        self._query = self._key = None
        if layer.dynamic:
            packed = layer.in_proj(x).flatten(2).unflatten(1, (3, layer.num_heads, layer.head_dim))  # (B, 3, M, D, N)
            self._query, self._key = packed[:, 0].transpose(-1, -2) / math.sqrt(layer.head_dim), packed[:, 1]

    @property
    def num_tokens(self) -> int:
        """P + H·W."""
        return self.num_prefix_tokens + math.prod(self.grid_size)

    @torch.no_grad()
    def rows(self, tokens: Tensor) -> dict[str, Tensor]:
        """Rows `tokens` (R,), token numbers, of the terms the layer has: "dynamic", "static", and always "mixed"."""
        dynamic, static = self._dynamic(tokens), self._static(tokens)
        if self.alone:
            term = static if dynamic is None else dynamic
            return {self.alone: term, "mixed": term}
        return {"dynamic": dynamic, "static": static, "mixed": self.alpha * dynamic + self.beta * static}

    def _dynamic(self, tokens: Tensor) -> Tensor | None:
        if self._query is None:
            return None
        return (self._query[:, :, tokens] @ self._key).softmax(-1)[:, :, None]

    def _static(self, tokens: Tensor) -> Tensor | None:
        static = None if self._affinity is None else self._affinity[None, :, None, tokens]
        if self._local_weight is not None:
            local = local_rows(self._local_weight, self.grid_size, tokens)
            local = local.unflatten(0, (self.num_heads, -1))[None]
            static = local if static is None else static + local
        return static


def why_no_affinity(layer: ContextAggregation) -> str | None:
    """Why `layer` has no affinity matrix; None if it has."""
    if layer.token_mlp is None:
        return None
    return "an MLP over the tokens (hidden_tokens): a GELU stands between its two matrices"


def grid_positions(grid_size: tuple[int, int], device: torch.device | None = None) -> Tensor:
    """(H·W, 2): row and column of the grid's tokens, int64."""
    return torch.cartesian_prod(*(torch.arange(side, device=device) for side in grid_size)).view(-1, 2)


def local_rows(weight: Tensor, grid_size: tuple[int, int], tokens: Tensor) -> Tensor:
    """Rows of the matrices (C, R, N) of depthwise filters (C, kh, kw): w[c, j − i] inside the window, 0 outside."""
    size = torch.tensor(weight.shape[1:], device=tokens.device)
    positions = grid_positions(grid_size, tokens.device)
    place = positions - positions[tokens, None] + size // 2  # (R, N, 2), in the window of the row's token
    inside = ((place >= 0) & (place < size)).all(-1)
    # All tokens outside share one more tap, which is 0.
    taps = torch.where(inside, place[..., 0] * size[1] + place[..., 1], size.prod())
    return F.pad(weight.flatten(1), (0, 1))[:, taps]


def _grid_of(layer: ContextAggregation, x: Tensor, grid_size: tuple[int, int] | None) -> tuple[int, int]:
    known = layer.grid_size or (None if layer.num_prefix_tokens else tuple(x.shape[-2:]))
    if known is not None:
        if grid_size not in (None, known):
            raise ValueError(f"grid_size: expected {known}, the layer's, or None, got {grid_size}")
        return known
    if grid_size is None:
        raise ValueError("grid_size: expected (H, W), as prefix tokens hide the grid, got None")
    tokens, prefix = x.shape[2] * x.shape[3], layer.num_prefix_tokens
    if prefix + math.prod(grid_size) != tokens:
        raise ValueError(
            f"grid_size: expected (H, W) of {tokens - prefix} tokens, as x has {tokens} with {prefix} prefix tokens, "
            f"got {tuple(grid_size)}"
        )
    return tuple(grid_size)
