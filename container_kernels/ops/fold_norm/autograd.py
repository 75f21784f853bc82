# SPDX-License-Identifier: MIT
"""Gradients of `fold_fwd_<backend>` in terms of the same backend's operators."""

import torch

from ..library import LIBRARY, NAMESPACE, refuse_double_backward
from . import schema  # noqa: F401 - defines the operators differentiated here
from .backends import COMPILED


def _register(backend: str) -> None:
    def setup_context(ctx, inputs, output):
        weight, _, first, second, ctx.count, gamma, beta, ctx.eps, _ = inputs
        ctx.save_for_backward(weight, first, second, gamma, beta)

    def backward(ctx, grad_folded, grad_shift):
        weight, first, second, gamma, beta = ctx.saved_tensors
        operator = getattr(torch.ops.container_kernels, f"fold_bwd_{backend}")
        grad_weight, grad_first, grad_second, grad_gamma, grad_beta = operator(
            grad_folded, grad_shift, weight, first, second, ctx.count, gamma, beta, ctx.eps
        )
        return grad_weight, grad_shift, grad_first, grad_second, None, grad_gamma, grad_beta, None, None

    torch.library.register_autograd(
        f"{NAMESPACE}::fold_fwd_{backend}", backward, setup_context=setup_context, lib=LIBRARY
    )
    refuse_double_backward(f"fold_bwd_{backend}", backend)


for _backend in COMPILED:
    _register(_backend)
