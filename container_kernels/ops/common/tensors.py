# SPDX-License-Identifier: MIT
"""Tensors as kernels and definitions take them: dtypes, layouts, addresses, outputs."""

import math
from contextlib import contextmanager

import torch
from torch import Tensor

from ..dispatch.recording import is_recorded

_poison_outputs = False


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype sums run in: float64 for float64, float32 for everything narrower."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def definition_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which definitions multiply matrices: that of sums, so that only the result is rounded.

    In a recorded program, which others run and do not compare with, the tensors' own: matrix units take no other.
    """
    return dtype if is_recorded() else accumulation_dtype(dtype)


def converted(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """`tensor` in `dtype`, for definitions; None stays None.

    As it is in a program recorded under autocast: autocast is no part of a program, and a conversion would be, together
    with a check of the dtype that autocast had given the tensor.
    """
    if tensor is None or (is_recorded() and torch.is_autocast_enabled(tensor.device.type)):
        return tensor
    return tensor.to(dtype)


def new_empty(like: Tensor, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> Tensor:
    """Uninitialised contiguous output; NaN under `poisoned_outputs`, so that an unwritten element shows."""
    out = like.new_empty(shape, dtype=dtype or like.dtype)
    return out.fill_(math.nan) if _poison_outputs else out


def rows_contiguous(tensor: Tensor) -> Tensor:
    """`tensor` itself when its last dimension is contiguous, as kernels require, else a copy."""
    return tensor if tensor.stride(-1) == 1 or tensor.size(-1) == 1 else tensor.contiguous()


def contiguous(tensor: Tensor | None) -> Tensor | None:
    """`tensor` itself, or a copy, contiguous; None stays None."""
    return None if tensor is None else tensor.contiguous()


def aligned(tensor: Tensor | None) -> Tensor | None:
    """`contiguous`, and at a multiple of 16 bytes, as allocations are: for Triton, which compiles for what it sees.

    A view that starts elsewhere would make kernels that load single elements and spill, which costs more than a copy.
    """
    tensor = contiguous(tensor)
    return tensor if tensor is None or tensor.data_ptr() % 16 == 0 else tensor.clone()


def pointer(tensor: Tensor | None) -> int:
    """The address of the tensor's data as the extension takes it, 0 for None."""
    return 0 if tensor is None else tensor.data_ptr()


@contextmanager
def poisoned_outputs():
    """Within it, every output a kernel is about to write starts as NaN (for tests)."""
    global _poison_outputs
    previous, _poison_outputs = _poison_outputs, True
    try:
        yield
    finally:
        _poison_outputs = previous
