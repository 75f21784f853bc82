# SPDX-License-Identifier: MIT
"""Gradients of deformable attention in terms of the same backend's operators."""

from torch import Tensor

from ..dispatch.registration import differentiate, operator_of, refuse_double_backward
from . import schema  # noqa: F401 - defines the operators differentiated here
from .backends import COMPILED
from .inputs import DeformableArguments


def deformable_attention_forward(backend: str, inputs: DeformableArguments) -> Tensor:
    """Differentiable deformable attention on `backend`."""
    return operator_of("deformable_attention_forward", backend)(*inputs)


def _register(backend: str) -> None:
    def save_inputs(ctx, inputs, output):
        value, ctx.spatial_shapes, sampling_locations, attention_weights = inputs
        ctx.save_for_backward(value, sampling_locations, attention_weights)

    def backward(ctx, grad_out):
        value, *sampling = ctx.saved_tensors
        needs_value, _, needs_locations, needs_weights = ctx.needs_input_grad
        grad_value = grad_locations = grad_weights = None
        if needs_value:
            grad_value = operator_of("deformable_attention_backward_value", backend)(
                grad_out, ctx.spatial_shapes, *sampling
            )
        if needs_locations or needs_weights:
            grad_locations, grad_weights = operator_of("deformable_attention_backward_sampling", backend)(
                grad_out, value, ctx.spatial_shapes, *sampling
            )
        return grad_value, None, grad_locations if needs_locations else None, grad_weights if needs_weights else None

    differentiate("deformable_attention_forward", backend, backward, save_inputs)
    refuse_double_backward("deformable_attention_backward_value", backend)
    refuse_double_backward("deformable_attention_backward_sampling", backend)


for _backend in COMPILED:
    _register(_backend)
