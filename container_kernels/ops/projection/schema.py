# SPDX-License-Identifier: MIT
"""The operators behind the projection: definition, output allocation, one kernel and one fake for each backend.

    projection_forward_<backend>(inputs) -> out (B, T, C_out)
    projection_forward_with_moments_<backend>(inputs) -> out, channel_sum, channel_m2
    projection_backward_<backend>(grad_out, inputs without bias and residual) -> grad_x, grad_weight, grad_bias

`inputs` are the fields of `ProjectionArguments`. grad_out and out have the dtype of x, and so have the gradients of x
and weight; that of the bias and the moments (C_out,) are in the accumulation dtype. channel_m2 is the sum over tokens
of (out − mean)².
"""

from importlib import import_module
from math import prod

from torch import Tensor

from ..common.tensors import accumulation_dtype, aligned, contiguous, new_empty
from ..dispatch.registration import arguments_of, define, parameters_of
from .backends import COMPILED
from .inputs import FORWARD_ONLY, ProjectionArguments, ProjectionGradients


def _forward_outputs(inputs: ProjectionArguments) -> Tensor:
    return new_empty(inputs.x, (*inputs.x.shape[:-1], inputs.weight.shape[0]))


def _forward_with_moments_outputs(inputs: ProjectionArguments) -> tuple[Tensor, Tensor, Tensor]:
    x, channels = inputs.x, inputs.weight.shape[0]
    moments = (new_empty(x, (channels,), accumulation_dtype(x.dtype)) for _ in range(2))
    return _forward_outputs(inputs), *moments


def _gradients(inputs: ProjectionArguments) -> ProjectionGradients:
    x, weight = inputs.x, inputs.weight
    grad_bias = new_empty(x, (weight.shape[0],), accumulation_dtype(x.dtype))
    return ProjectionGradients(new_empty(x, tuple(x.shape)), new_empty(weight, tuple(weight.shape)), grad_bias)


def _flops(x, weight, *_, **__) -> int:
    return 2 * prod(x) * weight[0]


def _register(backend: str) -> None:
    layout = aligned if backend == "triton" else contiguous

    def kernels():
        return import_module(f"{__package__}.{backend}")

    def forward(*arguments):
        inputs = ProjectionArguments(*arguments)
        out = _forward_outputs(inputs)
        if out.numel():
            kernels().forward(inputs.readable(layout), out)
        return out

    def forward_with_moments(*arguments):
        inputs = ProjectionArguments(*arguments)
        outputs = out, channel_sum, channel_m2 = _forward_with_moments_outputs(inputs)
        if out.numel():
            kernels().forward_with_moments(inputs.readable(layout), *outputs)
            return outputs
        return out, channel_sum.zero_(), channel_m2.zero_()

    def backward(grad_out, *arguments):
        inputs = arguments_of(ProjectionArguments, arguments, FORWARD_ONLY)
        grads = _gradients(inputs)
        if inputs.x.numel():
            kernels().backward(inputs.readable(layout), layout(grad_out), grads)
        else:
            for grad in grads:
                grad.zero_()
        return tuple(grads)

    parameters = parameters_of(ProjectionArguments)
    define(
        "projection_forward",
        backend,
        f"({parameters}) -> Tensor",
        forward,
        lambda *arguments: _forward_outputs(ProjectionArguments(*arguments)),
        _flops,
    )
    define(
        "projection_forward_with_moments",
        backend,
        f"({parameters}) -> (Tensor, Tensor, Tensor)",
        forward_with_moments,
        lambda *arguments: _forward_with_moments_outputs(ProjectionArguments(*arguments)),
        _flops,
    )
    define(
        "projection_backward",
        backend,
        f"(Tensor grad_out, {parameters_of(ProjectionArguments, FORWARD_ONLY)}) -> (Tensor, Tensor, Tensor)",
        backward,
        lambda grad_out, *arguments: tuple(_gradients(arguments_of(ProjectionArguments, arguments, FORWARD_ONLY))),
        lambda grad_out, *arguments, **_: 2 * _flops(*arguments),
    )


for _backend in COMPILED:
    _register(_backend)
