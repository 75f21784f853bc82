# SPDX-License-Identifier: MIT
"""The MLP on the CPU: thin calls into the C++ extension (csrc/fused_mlp). Arguments are contiguous, as in `schema`."""

import torch
from torch import Tensor

from ... import _extension
from ..common.tensors import pointer
from .inputs import MlpArguments, MlpGradients


def forward(inputs: MlpArguments, out: Tensor) -> None:
    """Write sample_scale · (gelu(x w1ᵀ + b1) w2ᵀ + b2) (+ x) to `out` (B, T, C_out)."""
    _extension.cpu.fused_mlp_forward(*_shape(inputs), *map(pointer, inputs[:-1]), inputs.residual, out.data_ptr())


def backward(inputs: MlpArguments, grad_out: Tensor, grads: MlpGradients) -> None:
    """Write the gradients; the hidden layer is computed again."""
    x, w1, b1, w2, _, sample_scale, residual = inputs
    _extension.cpu.fused_mlp_backward(
        *_shape(inputs), *map(pointer, (grad_out, x, w1, b1, w2, sample_scale)), residual, *map(pointer, grads)
    )


def _shape(inputs: MlpArguments) -> tuple:
    """First arguments of every kernel: dtype, (B, T), (C, hidden, C_out), threads."""
    x, out_channels, hidden = inputs.x, *inputs.w2.shape
    return _extension.DTYPE_CODES[x.dtype], x.shape[:2], (x.shape[2], hidden, out_channels), torch.get_num_threads()
