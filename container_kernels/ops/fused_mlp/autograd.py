# SPDX-License-Identifier: MIT
"""Gradients of `mlp_fwd_<backend>` in terms of the same backend's operators: only the inputs are kept."""

import torch
from torch import Tensor

from ..library import LIBRARY, NAMESPACE, refuse_double_backward
from . import schema  # noqa: F401 - defines the operators differentiated here
from .backends import COMPILED


def mlp_forward(
    backend: str,
    x: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    sample_scale: Tensor | None,
    residual: bool,
) -> Tensor:
    """Differentiable MLP on `backend`; arguments as in `schema`."""
    operator = getattr(torch.ops.container_kernels, f"mlp_fwd_{backend}")
    return operator(x, w1, b1, w2, b2, sample_scale, residual)


def _register(backend: str) -> None:
    def setup_context(ctx, inputs, output):
        x, w1, b1, w2, _, sample_scale, ctx.residual = inputs
        ctx.save_for_backward(x, w1, b1, w2, sample_scale)

    def backward(ctx, grad_out):
        operator = getattr(torch.ops.container_kernels, f"mlp_bwd_{backend}")
        grads = operator(grad_out, *ctx.saved_tensors, ctx.residual)
        wanted = zip(grads, ctx.needs_input_grad, strict=False)
        return (*(grad if needed else None for grad, needed in wanted), None, None)

    torch.library.register_autograd(
        f"{NAMESPACE}::mlp_fwd_{backend}", backward, setup_context=setup_context, lib=LIBRARY
    )
    refuse_double_backward(f"mlp_bwd_{backend}", backend)


for _backend in COMPILED:
    _register(_backend)
