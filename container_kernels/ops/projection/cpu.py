# SPDX-License-Identifier: MIT
"""The projection on the CPU: thin calls into the C++ extension (csrc/projection). Arguments are contiguous."""

import torch
from torch import Tensor

from ... import _extension
from ..common.tensors import pointer


def forward(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, sample_scale: Tensor | None, *, out: Tensor
) -> None:
    """Write sample_scale · (x weightᵀ + bias) (+ residual) to `out`; all as in `schema`."""
    _forward(x, weight, bias, residual, sample_scale, out, 0, 0)


def forward_with_statistics(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, sample_scale: Tensor | None, *,
    out: Tensor, channel_sum: Tensor, channel_m2: Tensor,
) -> None:  # fmt: skip
    """`forward`, and over all tokens the sum of `out` and of its squared deviations (C_out,), accumulation dtype."""
    _forward(
        x, weight, bias, residual, sample_scale, out, channel_sum.data_ptr(), channel_m2.data_ptr()
    )  # fmt: skip


def backward(
    grad_out: Tensor, x: Tensor, weight: Tensor, sample_scale: Tensor | None, *,
    grad_x: Tensor, grad_weight: Tensor, grad_bias: Tensor,
) -> None:  # fmt: skip
    """Write the gradients for x, weight and bias."""
    _extension.cpu.projection_backward(
        *_shape(x, weight),
        grad_out.data_ptr(), x.data_ptr(), weight.data_ptr(), pointer(sample_scale),
        grad_x.data_ptr(), grad_weight.data_ptr(), grad_bias.data_ptr(),
    )  # fmt: skip


def _forward(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, sample_scale: Tensor | None, out: Tensor,
    channel_sum: int, channel_m2: int,
) -> None:  # fmt: skip
    _extension.cpu.projection_forward(
        *_shape(x, weight),
        x.data_ptr(), weight.data_ptr(), bias.data_ptr(), pointer(residual), pointer(sample_scale),
        out.data_ptr(), channel_sum, channel_m2,
    )  # fmt: skip


def _shape(x: Tensor, weight: Tensor) -> tuple:
    """What every kernel takes first: dtype, (B, T), (C, C_out), threads."""
    dtype = _extension.DTYPE_CODES[x.dtype]
    return dtype, x.shape[:2], (x.shape[2], weight.shape[0]), torch.get_num_threads()
