# SPDX-License-Identifier: MIT
"""Gradients of the projection operators, to any order."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..library import LIBRARY, NAMESPACE
from ..statistics import gradient_through_statistics
from ..tokens import scaled_samples
from . import schema  # noqa: F401 - defines the operators differentiated here
from .backends import COMPILED


def projection_forward(
    backend: str, x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, sample_scale: Tensor | None
) -> Tensor:
    """Differentiable projection on `backend`; arguments as in `schema`."""
    return getattr(torch.ops.container_kernels, f"proj_fwd_{backend}")(x, weight, bias, residual, sample_scale)


def projection_forward_with_statistics(
    backend: str, x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, sample_scale: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The same with the sums of the output and of its squared deviations from the mean over all tokens."""
    return getattr(torch.ops.container_kernels, f"proj_fwd_stats_{backend}")(x, weight, bias, residual, sample_scale)


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
            operator = getattr(torch.ops.container_kernels, f"proj_bwd_{backend}")
            grads = operator(grad_out, x, weight, sample_scale)
        wanted = zip((*grads, grad_out), ctx.needs_input_grad, strict=False)
        return (*(grad if needed else None for grad, needed in wanted), None)

    def backward(ctx, grad_out):
        return input_gradients(ctx, grad_out, *ctx.saved_tensors)

    def backward_with_statistics(ctx, grad_out, grad_sum, grad_m2):
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
        ("proj_fwd", backward, save_inputs),
        ("proj_fwd_stats", backward_with_statistics, save_inputs_and_out),
        ("proj_bwd", double_backward, save_for_double_backward),
    ):
        torch.library.register_autograd(f"{NAMESPACE}::{name}_{backend}", formula, setup_context=save, lib=LIBRARY)


for _backend in COMPILED:
    _register(_backend)
