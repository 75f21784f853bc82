# SPDX-License-Identifier: MIT
"""The operators behind the fused MLP: definition, output allocation, one kernel and one fake for each backend.

    fused_mlp_forward_<backend>(x, w1, b1, w2, b2, sample_scale?, residual) -> out (B, T, C_out)
    fused_mlp_backward_<backend>(grad_out, x, w1, b1, w2, sample_scale?, residual)
        -> grad_x, grad_w1, grad_b1, grad_w2, grad_b2

x (B, T, C), w1 (hidden, C), w2 (C_out, hidden), grad_out and out have one dtype, and so have the gradients of x, w1 and
w2; the biases, their gradients and sample_scale (B,) are in the accumulation dtype. No tensor of the hidden layer goes
from forward to backward.
"""

from importlib import import_module
from math import prod

from torch import Tensor

from ..common.tensors import accumulation_dtype, aligned, contiguous, new_empty
from ..dispatch.registration import define
from .backends import COMPILED


def _forward_outputs(x: Tensor, w2: Tensor) -> Tensor:
    return new_empty(x, (*x.shape[:-1], w2.shape[0]))


def _backward_outputs(x: Tensor, w1: Tensor, w2: Tensor) -> tuple[Tensor, ...]:
    dtype = accumulation_dtype(x.dtype)
    grad_b1, grad_b2 = new_empty(x, (w1.shape[0],), dtype), new_empty(x, (w2.shape[0],), dtype)
    grad_x, grad_w1, grad_w2 = (new_empty(t, tuple(t.shape)) for t in (x, w1, w2))
    return grad_x, grad_w1, grad_b1, grad_w2, grad_b2


def _flops(x, w1, b1, w2, *_, **__) -> int:
    return 2 * prod(x) * w1[0] + 2 * prod(x[:-1]) * prod(w2)


def _gradient_flops(grad_out, x, w1, b1, w2, *_, **__) -> int:
    """The hidden layer once more, and two products for each layer."""
    return 6 * prod(x) * w1[0] + 4 * prod(x[:-1]) * prod(w2)


def _register(backend: str) -> None:
    readable = aligned if backend == "triton" else contiguous

    def kernels():
        return import_module(f"{__package__}.{backend}")

    def forward(x, w1, b1, w2, b2, sample_scale, residual):
        out = _forward_outputs(x, w2)
        if out.numel():
            kernels().forward(*map(readable, (x, w1, b1, w2, b2, sample_scale)), residual, out=out)
        return out

    def backward(grad_out, x, w1, b1, w2, sample_scale, residual):
        outputs = grad_x, grad_w1, grad_b1, grad_w2, grad_b2 = _backward_outputs(x, w1, w2)
        if x.numel():
            kernels().backward(
                *map(readable, (grad_out, x, w1, b1, w2, sample_scale)), residual,
                grad_x=grad_x, grad_w1=grad_w1, grad_b1=grad_b1, grad_w2=grad_w2, grad_b2=grad_b2,
            )  # fmt: skip
        else:
            for grad in outputs:
                grad.zero_()
        return outputs

    define(
        "fused_mlp_forward",
        backend,
        "(Tensor x, Tensor w1, Tensor b1, Tensor w2, Tensor b2, Tensor? sample_scale, bool residual) -> Tensor",
        forward,
        lambda x, w1, b1, w2, *rest: _forward_outputs(x, w2),
        _flops,
    )
    define(
        "fused_mlp_backward",
        backend,
        "(Tensor grad_out, Tensor x, Tensor w1, Tensor b1, Tensor w2, Tensor? sample_scale, "
        "bool residual) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
        backward,
        lambda grad_out, x, w1, b1, w2, *rest: _backward_outputs(x, w1, w2),
        _gradient_flops,
    )


for _backend in COMPILED:
    _register(_backend)
