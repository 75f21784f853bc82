# SPDX-License-Identifier: MIT
"""Gradients of the local operators in terms of the same backend's operators, to any order."""

from torch import Tensor

from ..dispatch.registration import differentiate, operator_of
from ..statistics import gradient_through_statistics
from . import schema  # noqa: F401 - defines the operators differentiated here
from .backends import COMPILED


def local_aggregation_forward(backend: str, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Differentiable local aggregation on `backend`; weight and bias in the accumulation dtype."""
    return operator_of("local_aggregation_forward", backend)(x, weight, bias)


def local_aggregation_forward_with_moments(
    backend: str, x: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The same with the sums of the output and of its squared deviations from the mean over all pixels."""
    return operator_of("local_aggregation_forward_with_moments", backend)(x, weight, bias)


def local_weight_gradient(backend: str, grad_out: Tensor, x: Tensor, kh: int, kw: int) -> tuple[Tensor, Tensor]:
    return operator_of("local_aggregation_backward_weight", backend)(grad_out, x, kh, kw)


def _register(backend: str) -> None:
    def save_inputs(ctx, inputs, output):
        ctx.save_for_backward(*inputs[:2])

    def save_inputs_and_out(ctx, inputs, output):
        ctx.save_for_backward(*inputs[:2], *output[:2])

    def input_gradients(ctx, grad_out, x, weight):
        need_x, need_weight, need_bias = ctx.needs_input_grad
        grad_x = grad_weight = grad_bias = None
        if need_x:
            grad_x = local_aggregation_forward(backend, grad_out, weight.flip(1, 2), None)
        if need_weight or need_bias:
            grad_weight, grad_bias = local_weight_gradient(backend, grad_out, x, *weight.shape[1:])
        return grad_x, grad_weight if need_weight else None, grad_bias if need_bias else None

    def backward(ctx, grad_out):
        return input_gradients(ctx, grad_out, *ctx.saved_tensors)

    def backward_with_moments(ctx, grad_out, grad_sum, grad_m2):
        x, weight, out, channel_sum = ctx.saved_tensors
        return input_gradients(
            ctx, gradient_through_statistics(backend, out, grad_out, channel_sum, grad_sum, grad_m2), x, weight
        )

    # The weight gradient is linear in each of its inputs, so its own derivatives are local aggregations again.
    def double_backward(ctx, of_grad_weight, of_grad_bias):
        grad_out, x = ctx.saved_tensors
        of_grad_out = local_aggregation_forward(backend, x, of_grad_weight, of_grad_bias)
        of_x = local_aggregation_forward(backend, grad_out, of_grad_weight.flip(1, 2), None)
        return of_grad_out, of_x, None, None

    for name, formula, save in (
        ("local_aggregation_forward", backward, save_inputs),
        ("local_aggregation_forward_with_moments", backward_with_moments, save_inputs_and_out),
        ("local_aggregation_backward_weight", double_backward, save_inputs),
    ):
        differentiate(name, backend, formula, save)


for _backend in COMPILED:
    _register(_backend)
