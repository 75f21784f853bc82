# SPDX-License-Identifier: MIT
"""Arguments of every CUDA launch beside its tensors: the module, the device and its stream, a workspace."""

from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from ... import _extension
from .validation import MAX_WINDOW

# Windows (square) that the kernels are compiled for (csrc/common/windows.h).
WINDOWS = (3, 5, 7, MAX_WINDOW)


def place(tensor: Tensor) -> tuple[ModuleType, int, int]:
    """The module for the tensor's device, the device's index and the handle of its current stream."""
    return place_on(tensor.device)


def place_on(device: torch.device) -> tuple[ModuleType, int, int]:
    """`place` of a tensor on `device`.

    The CPU gets the kernels as they run on this machine's processor, where the index is -1 and the stream 0.
    """
    if device.type == "cpu":
        return _extension.load_cuda_emulator(), -1, 0
    index = device.index
    return _extension.cuda, index, torch.cuda.current_stream(index).cuda_stream


def workspace(like: Tensor, size: int) -> Tensor:
    """`size` bytes on the device of `like`. The allocator hands them on in stream order, so they need not be kept."""
    return torch.empty(size, dtype=torch.uint8, device=like.device)


def compiled_window(kh: int, kw: int) -> int:
    """The height and width of the smallest compiled window that holds an odd kh × kw one."""
    for size in WINDOWS:
        if size >= max(kh, kw):
            return size
    raise ValueError(f"window: expected at most {WINDOWS[-1]}×{WINDOWS[-1]}, got {kh}×{kw}")


def pad_window(weight: Tensor) -> Tensor:
    """(C, kh, kw) with zeros around it up to a compiled window."""
    kh, kw = weight.shape[1:]
    size = compiled_window(kh, kw)
    if (kh, kw) == (size, size):
        return weight
    rows, columns = (size - kh) // 2, (size - kw) // 2
    return F.pad(weight, (columns, columns, rows, rows))


def cut_window(weight: Tensor, kh: int, kw: int) -> Tensor:
    """The kh × kw window in the middle of (C, size, size), where `pad_window` put it: a view."""
    size = weight.shape[1]
    return weight.narrow(1, (size - kh) // 2, kh).narrow(2, (size - kw) // 2, kw)
