# SPDX-License-Identifier: MIT
"""How far affinities reach: the mean attention distance."""

import math

import torch
from torch import Tensor

from .affinities import LayerAffinities, grid_positions

# Elements of a term that exist at a time: tens of MB with what is made of them, at any number of tokens.
_CHUNK = 2**21


def mean_distances(affinities: LayerAffinities, spacing: tuple[float, float] = (1.0, 1.0)) -> dict[str, Tensor]:
    """The mean distance of each head (M,), float64, of the terms the layer has.

        distance_m = mean over i of  Σ_j |A_m[i, j]| · dist(i, j) / Σ_j |A_m[i, j]|

    over the images and all tokens of the grid; prefix tokens have no place and are left out on both sides. Where each
    channel has its own matrix, |A_m| is their mean. Rows without any weight do not count; a head of such rows is NaN.

    Args:
        affinities: the layer's.
        spacing: distance of neighboring rows and columns of the grid; with the reduction, distances are in pixels.
    """
    prefix, device = affinities.num_prefix_tokens, affinities.device
    positions = grid_positions(affinities.grid_size, device) * torch.tensor(spacing, dtype=torch.float64, device=device)
    rows_at_a_time = max(1, _CHUNK // affinities.elements_per_row)
    sums: dict[str, Tensor] = {}
    counts: dict[str, Tensor] = {}
    for rows in torch.arange(len(positions), device=device).split(rows_at_a_time):
        distance = torch.linalg.vector_norm(positions[rows, None] - positions, dim=-1)  # (R, H·W)
        for name, term in affinities.rows(prefix + rows).items():
            weight = term[..., prefix:].abs().sum(2).double()  # (B, M, R, H·W)
            total = weight.sum(-1)
            mean = (weight * distance).sum(-1) / total
            counted = total > 0
            sums[name] = sums.get(name, 0) + mean.where(counted, 0).sum((0, 2))
            counts[name] = counts.get(name, 0) + counted.sum((0, 2))
    return {name: sums[name] / counts[name] for name in sums}


def uniform_distance(grid_size: tuple[int, int], spacing: tuple[float, float] = (1.0, 1.0)) -> float:
    """The mean distance of an affinity that weighs all tokens of the grid alike: the mean over all pairs."""
    steps = [torch.arange(1 - side, side, dtype=torch.float64) for side in grid_size]
    # So many of the pairs are so many rows, or columns, apart.
    pairs = torch.outer(*(side - step.abs() for side, step in zip(grid_size, steps, strict=True)))
    apart = torch.hypot(steps[0][:, None] * spacing[0], steps[1] * spacing[1])
    return float((pairs * apart).sum() / math.prod(grid_size) ** 2)
