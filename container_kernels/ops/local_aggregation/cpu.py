# SPDX-License-Identifier: MIT
"""Local aggregation (depthwise) on the CPU: thin calls into the C++ extension (csrc/local_aggregation)."""

import torch
from torch import Tensor

from ... import _extension
from ..common.tensors import pointer


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, *, out: Tensor) -> None:
    """Write the depthwise cross-correlation of `x` with zero padding to `out`.

    Args:
        x: (B, H, W, C), any strides with a contiguous last dimension.
        weight: (C, kh, kw), odd; bias: (C,) or None: contiguous, accumulation dtype.
        out: (B, H, W, C), dtype of x.
    """
    _forward(x, weight, bias, out, 0, 0)


def forward_with_moments(
    x: Tensor, weight: Tensor, bias: Tensor | None, *, out: Tensor, channel_sum: Tensor, channel_m2: Tensor
) -> None:
    """`forward`, and over all pixels the sum of `out` and of its squared deviations (C,), accumulation dtype."""
    _forward(x, weight, bias, out, channel_sum.data_ptr(), channel_m2.data_ptr())


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor, channel_sum: int, channel_m2: int) -> None:
    _extension.cpu.local_aggregation_forward(
        _extension.DTYPE_CODES[x.dtype], x.shape, weight.shape[1:], torch.get_num_threads(), x.data_ptr(), x.stride(),
        weight.data_ptr(), pointer(bias), out.data_ptr(), out.stride(),
        channel_sum, channel_m2,
    )  # fmt: skip


def backward_weight(grad_out: Tensor, x: Tensor, *, grad_weight: Tensor, grad_bias: Tensor) -> None:
    """Write the gradients for weight (C, kh, kw) and bias (C,), in the accumulation dtype.

    Args:
        grad_out, x: (B, H, W, C) of one dtype, any strides with a contiguous last dimension.
    """
    _extension.cpu.local_aggregation_backward_weight(
        _extension.DTYPE_CODES[x.dtype], x.shape, grad_weight.shape[1:], torch.get_num_threads(),
        grad_out.data_ptr(), grad_out.stride(), x.data_ptr(), x.stride(), grad_weight.data_ptr(), grad_bias.data_ptr(),
    )  # fmt: skip
