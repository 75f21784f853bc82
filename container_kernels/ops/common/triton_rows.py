# SPDX-License-Identifier: MIT
"""Rows that kernels read 16 or at least 8 bytes at a time: sizes that do not allow it are filled up with zeros.

33 channels, say, cost a copy of each tensor; elements loaded one by one would cost registers, of which kernels of
products have none left.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def row_unit(dtype: torch.dtype, *sizes: int) -> int:
    """Elements, up to 16 bytes, that rows of all these sizes are multiples of."""
    return math.gcd(16 // dtype.itemsize, *sizes)


def is_readable(dtype: torch.dtype, *sizes: int) -> bool:
    """Whether rows of all these sizes can be read at least 8 bytes at a time."""
    return row_unit(dtype, *sizes) * dtype.itemsize >= 8


def filled_size(size: int, dtype: torch.dtype) -> int:
    """`size`, or the next multiple of 16 bytes."""
    unit = 16 // dtype.itemsize
    return -(-size // unit) * unit


def filled(tensor: Tensor | None, *sizes: int) -> Tensor | None:
    """The tensor with its last dimensions filled up to `sizes` by zeros; the tensor itself where they have them."""
    if tensor is None or tensor.shape[-len(sizes) :] == sizes:
        return tensor
    spare = [part for size, wanted in zip(tensor.shape[::-1], sizes[::-1], strict=False) for part in (0, wanted - size)]
    return F.pad(tensor, spare)
