# SPDX-License-Identifier: MIT
"""Gradients of `fold_norm_forward_<backend>` in terms of the same backend's operators."""

from ..dispatch.registration import differentiate, operator_of, refuse_double_backward
from . import schema  # noqa: F401 - defines the operators differentiated here
from .backends import COMPILED


def _register(backend: str) -> None:
    def setup_context(ctx, inputs, output):
        weight, _, first, second, ctx.count, gamma, beta, ctx.eps, _ = inputs
        ctx.save_for_backward(weight, first, second, gamma, beta)

    def backward(ctx, grad_folded, grad_shift):
        weight, first, second, gamma, beta = ctx.saved_tensors
        operator = operator_of("fold_norm_backward", backend)
        grad_weight, grad_first, grad_second, grad_gamma, grad_beta = operator(
            grad_folded, grad_shift, weight, first, second, ctx.count, gamma, beta, ctx.eps
        )
        return grad_weight, grad_shift, grad_first, grad_second, None, grad_gamma, grad_beta, None, None

    differentiate("fold_norm_forward", backend, backward, setup_context)
    refuse_double_backward("fold_norm_backward", backend)


for _backend in COMPILED:
    _register(_backend)
