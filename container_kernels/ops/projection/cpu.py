# SPDX-License-Identifier: MIT
"""The projection on the CPU: thin calls into the C++ extension (csrc/projection). Arguments are contiguous."""

import torch
from torch import Tensor

from ... import _extension
from ..common.tensors import pointer
from .inputs import ProjectionArguments, ProjectionGradients


def forward(inputs: ProjectionArguments, out: Tensor) -> None:
    """Write sample_scale · (x weightᵀ + bias) (+ residual) to `out` (B, T, C_out)."""
    _forward(inputs, out, None, None)


def forward_with_moments(inputs: ProjectionArguments, out: Tensor, channel_sum: Tensor, channel_m2: Tensor) -> None:
    """`forward`, and over all tokens the sum of `out` and of its squared deviations (C_out,), accumulation dtype."""
    _forward(inputs, out, channel_sum, channel_m2)


def backward(inputs: ProjectionArguments, grad_out: Tensor, grads: ProjectionGradients) -> None:
    """Write the gradients for x, weight and bias."""
    _extension.cpu.projection_backward(
        *_shape(inputs),
        *map(pointer, (grad_out, inputs.x, inputs.weight, inputs.sample_scale)),
        *map(pointer, grads),
    )


def _forward(inputs: ProjectionArguments, out: Tensor, channel_sum: Tensor | None, channel_m2: Tensor | None) -> None:
    _extension.cpu.projection_forward(
        *_shape(inputs), *map(pointer, inputs), *map(pointer, (out, channel_sum, channel_m2))
    )


def _shape(inputs: ProjectionArguments) -> tuple:
    """First arguments of every kernel: dtype, (B, T), (C, C_out), threads."""
    x, out_channels = inputs.x, inputs.weight.shape[0]
    return _extension.DTYPE_CODES[x.dtype], x.shape[:2], (x.shape[2], out_channels), torch.get_num_threads()
