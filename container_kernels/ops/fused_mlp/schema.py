# SPDX-License-Identifier: MIT
"""The operators behind the fused MLP: definition, output allocation, one kernel and one fake for each backend.

    fused_mlp_forward_<backend>(inputs) -> out (B, T, C_out)
    fused_mlp_backward_<backend>(grad_out, inputs without b2) -> grad_x, grad_w1, grad_b1, grad_w2, grad_b2

`inputs` are the fields of `MlpArguments`. grad_out and out have the dtype of x, and so have the gradients of x, w1 and
w2; those of the biases are in the accumulation dtype. No tensor of the hidden layer goes from forward to backward.
"""

from importlib import import_module
from math import prod

from torch import Tensor

from ..common.tensors import accumulation_dtype, aligned, contiguous, new_empty
from ..dispatch.registration import arguments_of, define, parameters_of
from .backends import COMPILED
from .inputs import FORWARD_ONLY, MlpArguments, MlpGradients


def _forward_outputs(inputs: MlpArguments) -> Tensor:
    return new_empty(inputs.x, (*inputs.x.shape[:-1], inputs.w2.shape[0]))


def _gradients(inputs: MlpArguments) -> MlpGradients:
    x, w1, _, w2, *_ = inputs
    dtype = accumulation_dtype(x.dtype)
    grad_b1, grad_b2 = new_empty(x, (w1.shape[0],), dtype), new_empty(x, (w2.shape[0],), dtype)
    grad_x, grad_w1, grad_w2 = (new_empty(t, tuple(t.shape)) for t in (x, w1, w2))
    return MlpGradients(grad_x, grad_w1, grad_b1, grad_w2, grad_b2)


def _flops(x, w1, b1, w2, *_, **__) -> int:
    return 2 * prod(x) * w1[0] + 2 * prod(x[:-1]) * prod(w2)


def _gradient_flops(grad_out, x, w1, b1, w2, *_, **__) -> int:
    """The hidden layer once more, and two products for each layer."""
    return 6 * prod(x) * w1[0] + 4 * prod(x[:-1]) * prod(w2)


def _register(backend: str) -> None:
    layout = aligned if backend == "triton" else contiguous

    def kernels():
        return import_module(f"{__package__}.{backend}")

    def forward(*arguments):
        inputs = MlpArguments(*arguments)
        out = _forward_outputs(inputs)
        if out.numel():
            kernels().forward(inputs.readable(layout), out)
        return out

    def backward(grad_out, *arguments):
        inputs = arguments_of(MlpArguments, arguments, FORWARD_ONLY)
        grads = _gradients(inputs)
        if inputs.x.numel():
            kernels().backward(inputs.readable(layout), layout(grad_out), grads)
        else:
            for grad in grads:
                grad.zero_()
        return tuple(grads)

    define(
        "fused_mlp_forward",
        backend,
        f"({parameters_of(MlpArguments)}) -> Tensor",
        forward,
        lambda *arguments: _forward_outputs(MlpArguments(*arguments)),
        _flops,
    )
    define(
        "fused_mlp_backward",
        backend,
        f"(Tensor grad_out, {parameters_of(MlpArguments, FORWARD_ONLY)}) -> ({', '.join(['Tensor'] * 5)})",
        backward,
        lambda grad_out, *arguments: tuple(_gradients(arguments_of(MlpArguments, arguments, FORWARD_ONLY))),
        _gradient_flops,
    )


for _backend in COMPILED:
    _register(_backend)
