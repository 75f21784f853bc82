# SPDX-License-Identifier: MIT
"""CUDA C++ kernels of deformable attention, from the compiled extension (csrc/deformable_attention/cuda)."""

import torch
from torch import Tensor

from ..._extension import DTYPE_CODES
from ..common.cuda_launch import place, workspace
from ..common.tensors import aligned
from .inputs import DeformableArguments


def forward(inputs: DeformableArguments, out: Tensor) -> None:
    """Write deformable attention of `inputs` to `out` (B, Q, M, D), dtype of value."""
    value, locations, weights = inputs.value, *_sampling(inputs, inputs.value.dtype)
    module, device, stream = place(value)
    module.deformable_attention_forward(
        DTYPE_CODES[value.dtype], device, stream, _sizes(inputs, out), inputs.spatial_shapes,
        value.data_ptr(), value.stride(), locations.data_ptr(), weights.data_ptr(), out.data_ptr(),
    )  # fmt: skip


def backward_value(inputs: DeformableArguments, grad_out: Tensor, grad_value: Tensor) -> None:
    """Write the gradient of value (B, S, M, D). `inputs` has no value; `grad_out` (B, Q, M, D) is contiguous."""
    locations, weights = _sampling(inputs, grad_out.dtype)
    module, device, stream = place(grad_out)
    sizes = _sizes(inputs, grad_out)
    scratch = workspace(grad_out, module.deformable_attention_backward_value_workspace(sizes, inputs.spatial_shapes))
    module.deformable_attention_backward_value(
        DTYPE_CODES[grad_out.dtype], device, stream, sizes, inputs.spatial_shapes, grad_out.data_ptr(),
        locations.data_ptr(), weights.data_ptr(), grad_value.data_ptr(), scratch.data_ptr(),
    )  # fmt: skip


def backward_sampling(
    inputs: DeformableArguments, grad_out: Tensor, grad_locations: Tensor, grad_weights: Tensor
) -> None:
    """Write the gradients of locations and weights, in the dtypes of these. `grad_out` is contiguous."""
    value, locations, weights = inputs.value, *_sampling(inputs, inputs.value.dtype)
    grads = (grad_locations, grad_weights)
    # As kernels write them.
    wide = [grad if grad.dtype == torch.float32 else torch.empty_like(grad, dtype=torch.float32) for grad in grads]
    module, device, stream = place(value)
    module.deformable_attention_backward_sampling(
        DTYPE_CODES[value.dtype], device, stream, _sizes(inputs, grad_out), inputs.spatial_shapes,
        grad_out.data_ptr(), value.data_ptr(), value.stride(), locations.data_ptr(), weights.data_ptr(),
        wide[0].data_ptr(), wide[1].data_ptr(),
    )  # fmt: skip
    for grad, written in zip(grads, wide, strict=True):
        if grad is not written:
            grad.copy_(written)


def _sampling(inputs: DeformableArguments, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Locations and weights in float32; x and y are read together, so locations must not begin between two of them."""
    inputs = inputs.accumulating(dtype)
    return aligned(inputs.sampling_locations), inputs.attention_weights


def _sizes(inputs: DeformableArguments, out: Tensor) -> tuple[int, ...]:
    """(B, S, Q, M, D, P)."""
    batch, queries, heads, head_dim = out.shape
    return batch, inputs.pixels, queries, heads, head_dim, inputs.sampling_locations.shape[4]
