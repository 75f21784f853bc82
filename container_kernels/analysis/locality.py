# SPDX-License-Identifier: MIT
"""Mean attention distance: how far affinities reach."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .affinities import TERMS, LayerAffinities, grid_positions

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
    if affinities.filters is not None:
        distances = {"static": _filter_distances(affinities.filters, affinities.grid_size, spacing)}
    else:
        distances = _row_distances(affinities, spacing)
    return {**distances, "mixed": distances[affinities.alone]} if affinities.alone else distances


def _filter_distances(filters: Tensor, grid_size: tuple[int, int], spacing: tuple[float, float]) -> Tensor:
    """Of filters (M, D, kh, kw): rows differ only in the taps outside the grid, so none is written out."""
    size = filters.shape[2:]
    center = torch.tensor([side // 2 for side in size], device=filters.device)
    distance = _lengths(grid_positions(size, filters.device) - center, spacing)  # (kh·kw,)
    grid = filters.new_ones(1, 1, *grid_size, dtype=torch.float64)
    inside = F.unfold(grid, size, padding=(size[0] // 2, size[1] // 2))[0]  # (kh·kw, N)
    weight = filters.abs().sum(1).double().flatten(1)  # (M, kh·kw)
    return ((weight * distance) @ inside / (weight @ inside)).nanmean(1)


def _row_distances(affinities: LayerAffinities, spacing: tuple[float, float]) -> dict[str, Tensor]:
    """Of the terms themselves, and of "mixed" where it is another."""
    prefix, device = affinities.num_prefix_tokens, affinities.device
    names = (affinities.alone,) if affinities.alone else TERMS
    positions = grid_positions(affinities.grid_size, device)
    rows_at_a_time = max(1, _CHUNK // affinities.elements_per_row)
    sums: dict[str, Tensor] = {}
    counts: dict[str, Tensor] = {}
    for rows in torch.arange(len(positions), device=device).split(rows_at_a_time):
        distance = _lengths(positions[rows, None] - positions, spacing)  # (R, H·W)
        terms = affinities.rows(prefix + rows)
        for name in names:
            weight = terms[name][..., prefix:].abs().sum(2).double()  # (B, M, R, H·W)
            total = weight.sum(-1)
            mean = (weight * distance).sum(-1) / total
            counted = total > 0
            sums[name] = sums.get(name, 0) + mean.where(counted, 0).sum((0, 2))
            counts[name] = counts.get(name, 0) + counted.sum((0, 2))
    return {name: sums[name] / counts[name] for name in sums}


def _lengths(steps: Tensor, spacing: tuple[float, float]) -> Tensor:
    """Of (…, 2) steps down and to the right, float64."""
    return torch.linalg.vector_norm(steps * steps.new_tensor(spacing, dtype=torch.float64), dim=-1)


def uniform_distance(grid_size: tuple[int, int], spacing: tuple[float, float] = (1.0, 1.0)) -> float:
    """The mean distance of an affinity that weighs all tokens of the grid alike: the mean over all pairs."""
    steps = [torch.arange(1 - side, side, dtype=torch.float64) for side in grid_size]
    # So many of the pairs are so many rows, or columns, apart.
    pairs = torch.outer(*(side - step.abs() for side, step in zip(grid_size, steps, strict=True)))
    apart = torch.hypot(steps[0][:, None] * spacing[0], steps[1] * spacing[1])
    return float((pairs * apart).sum() / math.prod(grid_size) ** 2)
