# SPDX-License-Identifier: MIT
"""Checks of the arguments of `deformable_attention`."""

from collections.abc import Sequence

import numpy
import torch
from torch import Tensor

from ..common.validation import check_device, check_shape, check_tensor

# Kernels number the pixels of all levels in 32 bits.
MAX_PIXELS = 2**31 - 1


def level_sizes(spatial_shapes) -> list[tuple[int, int]]:
    """`spatial_shapes` as (height, width) of every level."""
    if isinstance(spatial_shapes, Tensor):
        if spatial_shapes.ndim != 2 or spatial_shapes.shape[1] != 2:
            raise ValueError(f"spatial_shapes: expected (L, 2), got shape {tuple(spatial_shapes.shape)}")
        if spatial_shapes.is_floating_point() or spatial_shapes.is_complex() or spatial_shapes.dtype == torch.bool:
            raise TypeError(f"spatial_shapes: expected integers, got {spatial_shapes.dtype}")
        if spatial_shapes.is_meta:
            raise ValueError("spatial_shapes: a meta tensor has no numbers; give (height, width) of every level")
        spatial_shapes = spatial_shapes.tolist()
    if not isinstance(spatial_shapes, Sequence) or isinstance(spatial_shapes, str):
        raise TypeError(f"spatial_shapes: expected (height, width) of every level, got {type(spatial_shapes).__name__}")
    sizes = [_level_size(index, size) for index, size in enumerate(spatial_shapes)]
    if not sizes:
        raise ValueError("spatial_shapes: expected at least one level, got none")
    return sizes


def _level_size(index: int, size) -> tuple[int, int]:
    sides = size.tolist() if isinstance(size, Tensor) else size
    if not isinstance(sides, Sequence) or len(sides) != 2 or not all(map(_is_integer, sides)):
        raise TypeError(f"spatial_shapes[{index}]: expected integers (height, width), got {size!r}")
    height, width = map(_as_int, sides)
    if height < 1 or width < 1:
        raise ValueError(f"spatial_shapes[{index}]: expected height and width of at least 1, got {(height, width)}")
    return height, width


def _is_integer(value) -> bool:
    """Also a number of NumPy's, and a tensor of one, which is what shapes are in torch.jit.trace."""
    if isinstance(value, Tensor):
        return value.ndim == 0 and not (value.is_floating_point() or value.is_complex() or value.dtype == torch.bool)
    return isinstance(value, int | torch.SymInt | numpy.integer) and not isinstance(value, bool)


def _as_int(value):
    return value if isinstance(value, int | torch.SymInt) else int(value)


def validate(value, sizes: list[tuple[int, int]], sampling_locations, attention_weights) -> None:
    check_tensor("value", value, 4, "(B, S, M, D)")
    check_tensor("sampling_locations", sampling_locations, 6, "(B, Q, M, L, P, 2)")
    check_tensor("attention_weights", attention_weights, 5, "(B, Q, M, L, P)")
    batch, pixels, heads, head_dim = value.shape
    if heads < 1 or head_dim < 1:
        raise ValueError(f"value: expected (B, S, M, D) with M ≥ 1 and D ≥ 1, got {tuple(value.shape)}")
    expected = sum(height * width for height, width in sizes)
    if pixels != expected:
        raise ValueError(
            f"value: expected (B, S, M, D) with S = {expected}, the pixels of the levels {sizes}, got "
            f"{tuple(value.shape)}"
        )
    if pixels > MAX_PIXELS:
        raise ValueError(f"value: expected at most {MAX_PIXELS} pixels in all levels, got {pixels}")
    queries, points = sampling_locations.shape[1], sampling_locations.shape[4]
    shape = (batch, queries, heads, len(sizes), points)
    check_shape("sampling_locations", sampling_locations, (*shape, 2), "(B, Q, M, L, P, 2)")
    check_points("sampling_locations", sampling_locations)
    check_shape("attention_weights", attention_weights, shape, "(B, Q, M, L, P)")
    check_device("sampling_locations", sampling_locations, "value", value)
    check_device("attention_weights", attention_weights, "value", value)


def check_points(name: str, tensor: Tensor) -> None:
    """`tensor` (B, Q, M, L, P, 2)."""
    if tensor.shape[4] < 1:
        raise ValueError(f"{name}: expected at least one point, got {tuple(tensor.shape)}")


def check_sampling_dtypes(value: Tensor, sampling_locations: Tensor, attention_weights: Tensor) -> None:
    for name, tensor in (("sampling_locations", sampling_locations), ("attention_weights", attention_weights)):
        if tensor.dtype not in (value.dtype, torch.float32):
            wanted = " or ".join(dict.fromkeys((str(value.dtype), "torch.float32")))
            raise TypeError(f"{name}: expected dtype {wanted}, beside value of {value.dtype}, got {tensor.dtype}")
