# SPDX-License-Identifier: MIT
"""The operators behind the projection: definition, output allocation, one kernel and one fake for each backend.

    projection_forward_<backend>(x, weight, bias, residual?, sample_scale?) -> out (B, T, C_out)
    projection_forward_with_moments_<backend>(x, weight, bias, residual?, sample_scale?) -> out, channel_sum, channel_m2
    projection_backward_<backend>(grad_out, x, weight, sample_scale?) -> grad_x, grad_weight, grad_bias

x (B, T, C), weight (C_out, C), residual and grad_out (B, T, C_out) have one dtype, and so have the gradients of x and
weight; bias, its gradient, the statistics (C_out,) and sample_scale (B,) are in the accumulation dtype. channel_m2 is
the sum over tokens of (out − mean)².
"""

from importlib import import_module
from math import prod

from torch import Tensor

from ..common.tensors import accumulation_dtype, aligned, contiguous, new_empty
from ..dispatch.registration import define
from .backends import COMPILED


def _forward_outputs(x: Tensor, weight: Tensor) -> Tensor:
    return new_empty(x, (*x.shape[:-1], weight.shape[0]))


def _forward_with_statistics_outputs(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    statistics = (new_empty(x, (weight.shape[0],), accumulation_dtype(x.dtype)) for _ in range(2))
    return _forward_outputs(x, weight), *statistics


def _backward_outputs(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    grad_bias = new_empty(x, (weight.shape[0],), accumulation_dtype(x.dtype))
    return new_empty(x, tuple(x.shape)), new_empty(weight, tuple(weight.shape)), grad_bias


def _flops(x, weight, *_, **__) -> int:
    return 2 * prod(x) * weight[0]


def _register(backend: str) -> None:
    readable = aligned if backend == "triton" else contiguous

    def kernels():
        return import_module(f"{__package__}.{backend}")

    def forward(x, weight, bias, residual, sample_scale):
        out = _forward_outputs(x, weight)
        if out.numel():
            kernels().forward(*map(readable, (x, weight, bias, residual, sample_scale)), out=out)
        return out

    def forward_with_statistics(x, weight, bias, residual, sample_scale):
        out, channel_sum, channel_m2 = _forward_with_statistics_outputs(x, weight)
        if out.numel():
            kernels().forward_with_statistics(
                *map(readable, (x, weight, bias, residual, sample_scale)),
                out=out, channel_sum=channel_sum, channel_m2=channel_m2,
            )  # fmt: skip
            return out, channel_sum, channel_m2
        return out, channel_sum.zero_(), channel_m2.zero_()

    def backward(grad_out, x, weight, sample_scale):
        outputs = grad_x, grad_weight, grad_bias = _backward_outputs(x, weight)
        if x.numel():
            kernels().backward(
                *map(readable, (grad_out, x, weight, sample_scale)),
                grad_x=grad_x, grad_weight=grad_weight, grad_bias=grad_bias,
            )  # fmt: skip
        else:
            for grad in outputs:
                grad.zero_()
        return outputs

    arguments = "(Tensor x, Tensor weight, Tensor bias, Tensor? residual, Tensor? sample_scale)"
    define(
        "projection_forward",
        backend,
        f"{arguments} -> Tensor",
        forward,
        lambda x, weight, *rest: _forward_outputs(x, weight),
        _flops,
    )
    define(
        "projection_forward_with_moments",
        backend,
        f"{arguments} -> (Tensor, Tensor, Tensor)",
        forward_with_statistics,
        lambda x, weight, *rest: _forward_with_statistics_outputs(x, weight),
        _flops,
    )
    define(
        "projection_backward",
        backend,
        "(Tensor grad_out, Tensor x, Tensor weight, Tensor? sample_scale) -> (Tensor, Tensor, Tensor)",
        backward,
        lambda grad_out, x, weight, sample_scale: _backward_outputs(x, weight),
        lambda grad_out, x, weight, sample_scale, **_: 2 * _flops(x, weight),
    )


for _backend in COMPILED:
    _register(_backend)
