# SPDX-License-Identifier: MIT
"""The MLP on the CPU: thin calls into the C++ extension (csrc/fused_mlp). Arguments are contiguous, as in `schema`."""

import torch
from torch import Tensor

from ... import _extension
from ..common.tensors import pointer


def forward(
    x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, sample_scale: Tensor | None, residual: bool, *,
    out: Tensor,
) -> None:  # fmt: skip
    """Write sample_scale · (gelu(x w1ᵀ + b1) w2ᵀ + b2) (+ x) to `out`."""
    _extension.cpu.fused_mlp_forward(
        *_shape(x, w2),
        x.data_ptr(), w1.data_ptr(), b1.data_ptr(), w2.data_ptr(), b2.data_ptr(), pointer(sample_scale), residual,
        out.data_ptr(),
    )  # fmt: skip


def backward(
    grad_out: Tensor, x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, sample_scale: Tensor | None, residual: bool, *,
    grad_x: Tensor, grad_w1: Tensor, grad_b1: Tensor, grad_w2: Tensor, grad_b2: Tensor,
) -> None:  # fmt: skip
    """Write the gradients; the hidden layer is computed again."""
    _extension.cpu.fused_mlp_backward(
        *_shape(x, w2),
        grad_out.data_ptr(), x.data_ptr(), w1.data_ptr(), b1.data_ptr(), w2.data_ptr(), pointer(sample_scale), residual,
        grad_x.data_ptr(), grad_w1.data_ptr(), grad_b1.data_ptr(), grad_w2.data_ptr(), grad_b2.data_ptr(),
    )  # fmt: skip


def _shape(x: Tensor, w2: Tensor) -> tuple:
    """What every kernel takes first: dtype, (B, T), (C, hidden, C_out), threads."""
    out_channels, hidden = w2.shape
    dtype = _extension.DTYPE_CODES[x.dtype]
    return dtype, x.shape[:2], (x.shape[2], hidden, out_channels), torch.get_num_threads()
