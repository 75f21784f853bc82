# SPDX-License-Identifier: MIT
"""Deformable attention on the CPU: thin calls into the C++ extension (csrc/deformable_attention)."""

import torch
from torch import Tensor

from ... import _extension
from .inputs import DeformableArguments


def forward(inputs: DeformableArguments, out: Tensor) -> None:
    """Write the result (B, Q, M, D), dtype of value, to `out`."""
    inputs = inputs.accumulating(out.dtype)
    _extension.cpu.deformable_attention_forward(
        *_problem(inputs, out), inputs.value.data_ptr(), inputs.value.stride(),
        inputs.sampling_locations.data_ptr(), inputs.attention_weights.data_ptr(), out.data_ptr(),
    )  # fmt: skip


def backward_value(inputs: DeformableArguments, grad_out: Tensor, grad_value: Tensor) -> None:
    """Write the gradient of value (B, S, M, D), contiguous; `inputs` come without value, `grad_out` contiguous."""
    inputs = inputs.accumulating(grad_out.dtype)
    _extension.cpu.deformable_attention_backward_value(
        *_problem(inputs, grad_out), grad_out.data_ptr(), inputs.sampling_locations.data_ptr(),
        inputs.attention_weights.data_ptr(), grad_value.data_ptr(),
    )  # fmt: skip


def backward_sampling(
    inputs: DeformableArguments, grad_out: Tensor, grad_locations: Tensor, grad_weights: Tensor
) -> None:
    """Write the gradients of locations and weights, shaped and typed as these; `grad_out` is contiguous."""
    inputs = inputs.accumulating(grad_out.dtype)
    computed = [
        grad if grad.dtype == given.dtype else torch.empty_like(given)
        for grad, given in ((grad_locations, inputs.sampling_locations), (grad_weights, inputs.attention_weights))
    ]
    _extension.cpu.deformable_attention_backward_sampling(
        *_problem(inputs, grad_out), grad_out.data_ptr(), inputs.value.data_ptr(), inputs.value.stride(),
        inputs.sampling_locations.data_ptr(), inputs.attention_weights.data_ptr(),
        *(grad.data_ptr() for grad in computed),
    )  # fmt: skip
    for grad, result in zip((grad_locations, grad_weights), computed, strict=True):
        if grad is not result:
            grad.copy_(result)


def _problem(inputs: DeformableArguments, out: Tensor) -> tuple:
    """Dtype, (B, S, Q, M, D, P), sizes of the levels, threads; `out` is the result, or its gradient."""
    batch, queries, heads, head_dim = out.shape
    sizes = (batch, inputs.pixels, queries, heads, head_dim, inputs.attention_weights.shape[-1])
    return _extension.DTYPE_CODES[out.dtype], sizes, inputs.spatial_shapes, torch.get_num_threads()
