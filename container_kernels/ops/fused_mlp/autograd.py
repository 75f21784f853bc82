# SPDX-License-Identifier: MIT
"""Gradients of `fused_mlp_forward_<backend>` in terms of the same backend's operators: only the inputs are kept."""

import torch
from torch import Tensor

from ..dispatch.registration import differentiate, operator_of
from . import schema  # noqa: F401 - defines the operators differentiated here
from .backends import COMPILED
from .inputs import MlpArguments
from .reference import fused_mlp_reference


def fused_mlp_forward(backend: str, inputs: MlpArguments) -> Tensor:
    """Differentiable MLP on `backend`."""
    return operator_of("fused_mlp_forward", backend)(*inputs)


def _register(backend: str) -> None:
    def setup_context(ctx, inputs, output):
        x, w1, b1, w2, _, sample_scale, ctx.residual = inputs
        ctx.save_for_backward(x, w1, b1, w2, sample_scale)

    def backward(ctx, grad_out):
        operator = operator_of("fused_mlp_backward", backend)
        grads = operator(grad_out, *ctx.saved_tensors, ctx.residual)
        wanted = zip(grads, ctx.needs_input_grad, strict=False)
        return (*(grad if needed else None for grad, needed in wanted), None, None)

    def save_for_double_backward(ctx, inputs, output):
        *tensors, ctx.residual = inputs
        ctx.save_for_backward(*tensors)

    # Rare enough to be left to plain PyTorch: the gradients of the definition's gradients, themselves differentiable.
    @torch.enable_grad()
    def double_backward(ctx, *of_grads):
        *tensors, sample_scale = ctx.saved_tensors
        # Views, so that what grad_out itself owes to x is not counted here as well.
        tensors = [t.view_as(t) if t.requires_grad else t.detach().requires_grad_() for t in tensors]
        grad_out, x, w1, b1, w2 = tensors
        b2 = torch.zeros(w2.shape[0], dtype=b1.dtype, device=b1.device, requires_grad=True)
        y = fused_mlp_reference(x, w1, b1, w2, b2, ctx.residual, sample_scale)
        grads = torch.autograd.grad(y, (x, w1, b1, w2, b2), grad_out, create_graph=True)
        return *torch.autograd.grad(grads, tensors, of_grads, create_graph=True, materialize_grads=True), None, None

    for name, formula, save in (
        ("fused_mlp_forward", backward, setup_context),
        ("fused_mlp_backward", double_backward, save_for_double_backward),
    ):
        differentiate(name, backend, formula, save)


for _backend in COMPILED:
    _register(_backend)
