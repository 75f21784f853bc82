# SPDX-License-Identifier: MIT
"""Autocast does not reach inside our operators, so each op applies one explicit policy.

Under autocast the activations (q, k, v, x) are cast to the autocast dtype, as `conv2d` and `linear` do; float64
stays float64. Matrices of linear layers follow them, in every call. Small static parameters keep their precision: the
kernels take them in the accumulation dtype.
"""

import torch
from torch import Tensor

from .recording import is_recorded


def is_active(tensor) -> bool:
    """Whether autocast is on for the device of `tensor`; the device type meta knows no autocast.

    Not while a program is recorded: it is run with autocast or without, so what casts is what casts in it then.
    """
    if not isinstance(tensor, Tensor) or tensor.device.type == "meta" or is_recorded():
        return False
    return torch.is_autocast_enabled(tensor.device.type)


def cast(tensor: Tensor | None, device_type: str) -> Tensor | None:
    """`tensor` in the autocast dtype of `device_type`."""
    if tensor is None or tensor.dtype == torch.float64:
        return tensor
    return tensor.to(torch.get_autocast_dtype(device_type))


def activation_dtype(x: Tensor) -> torch.dtype:
    """The dtype in which an op computes with `x`: its own, or what autocast makes of it."""
    if not is_active(x) or x.dtype == torch.float64:
        return x.dtype
    return torch.get_autocast_dtype(x.device.type)
