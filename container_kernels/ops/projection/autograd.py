# SPDX-License-Identifier: MIT
"""Gradients of the projection operators, to any order."""

import torch.nn.functional as F
from torch import Tensor

from ..common.tokens import scaled_samples
from ..dispatch.registration import differentiate, operator_of
from ..statistics import gradient_through_statistics
from . import schema  # noqa: F401 - defines the operators differentiated here
from .backends import COMPILED
from .inputs import ProjectionArguments


def projection_forward(backend: str, inputs: ProjectionArguments) -> Tensor:
    """Differentiable projection on `backend`."""
    return operator_of("projection_forward", backend)(*inputs)


def projection_forward_with_moments(backend: str, inputs: ProjectionArguments) -> tuple[Tensor, Tensor, Tensor]:
    """The same with the sums of the output and of its squared deviations from the mean over all tokens."""
    return operator_of("projection_forward_with_moments", backend)(*inputs)


def _register(backend: str) -> None:
    def save_inputs(ctx, inputs, output):
        x, weight, _, _, sample_scale = inputs
        ctx.save_for_backward(x, weight, sample_scale)

    def save_inputs_and_out(ctx, inputs, output):
        x, weight, _, _, sample_scale = inputs
        ctx.save_for_backward(x, weight, sample_scale, *output[:2])

    def input_gradients(ctx, grad_out, x, weight, sample_scale):
        grads = (None,) * 3
        if any(ctx.needs_input_grad[:3]):
            operator = operator_of("projection_backward", backend)
            grads = operator(grad_out, x, weight, sample_scale)
        wanted = zip((*grads, grad_out), ctx.needs_input_grad, strict=False)
        return (*(grad if needed else None for grad, needed in wanted), None)

    def backward(ctx, grad_out):
        return input_gradients(ctx, grad_out, *ctx.saved_tensors)

    def backward_with_moments(ctx, grad_out, grad_sum, grad_m2):
        *inputs, out, channel_sum = ctx.saved_tensors
        return input_gradients(
            ctx, gradient_through_statistics(backend, out, grad_out, channel_sum, grad_sum, grad_m2), *inputs
        )

    def save_for_double_backward(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    # The gradients are linear in each of grad_out, x and weight.
    def double_backward(ctx, of_grad_x, of_grad_weight, of_grad_bias):
        grad_out, x, weight, sample_scale = ctx.saved_tensors
        of_grad_out = F.linear(of_grad_x, weight) + F.linear(x, of_grad_weight, of_grad_bias.to(x.dtype))
        scaled = scaled_samples(grad_out, sample_scale)
        of_weight = scaled.flatten(0, 1).t() @ of_grad_x.flatten(0, 1)
        return scaled_samples(of_grad_out, sample_scale), scaled @ of_grad_weight, of_weight, None

    for name, formula, save in (
        ("projection_forward", backward, save_inputs),
        ("projection_forward_with_moments", backward_with_moments, save_inputs_and_out),
        ("projection_backward", double_backward, save_for_double_backward),
    ):
        differentiate(name, backend, formula, save)


for _backend in COMPILED:
    _register(_backend)
