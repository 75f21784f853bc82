# SPDX-License-Identifier: MIT
"""The operators behind local aggregation: definition, output allocation, one kernel and one fake for each backend.

    local_aggregation_forward_<backend>(x (B, H, W, C), weight (C, kh, kw), bias (C,)?) -> out (B, H, W, C)
    local_aggregation_forward_with_moments_<backend>(x, weight, bias?) -> out, channel_sum (C,), channel_m2 (C,)
    local_aggregation_backward_weight_<backend>(grad_out, x, kh, kw) -> grad_weight (C, kh, kw), grad_bias (C,)

Weight, bias, their gradients and the statistics are in the accumulation dtype; channel_m2 is the sum over pixels of
(out − mean)². The input gradient is `local_aggregation_forward` of
`grad_out` with the filters turned by 180 degrees, so it needs no operator of its own.
"""

from importlib import import_module
from math import prod

from torch import Tensor

from ..common.tensors import accumulation_dtype, new_empty, rows_contiguous
from ..dispatch.registration import define
from .backends import COMPILED


def _forward_outputs(x: Tensor) -> Tensor:
    return new_empty(x, tuple(x.shape))


def _forward_with_moments_outputs(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    statistics = (new_empty(x, (x.shape[-1],), accumulation_dtype(x.dtype)) for _ in range(2))
    return _forward_outputs(x), *statistics


def _backward_weight_outputs(x: Tensor, kh: int, kw: int) -> tuple[Tensor, Tensor]:
    dtype, channels = accumulation_dtype(x.dtype), x.shape[-1]
    return new_empty(x, (channels, kh, kw), dtype), new_empty(x, (channels,), dtype)


def _filter_flops(x, weight, bias, **_) -> int:
    return 2 * prod(x) * prod(weight[1:])


def _register(backend: str) -> None:
    def kernels():
        return import_module(f"{__package__}.{backend}")

    def forward(x, weight, bias):
        out = _forward_outputs(x)
        if out.numel():
            bias = None if bias is None else bias.contiguous()
            kernels().forward(rows_contiguous(x), weight.contiguous(), bias, out=out)
        return out

    def forward_with_moments(x, weight, bias):
        out, channel_sum, channel_m2 = _forward_with_moments_outputs(x)
        if out.numel():
            bias = None if bias is None else bias.contiguous()
            kernels().forward_with_moments(
                rows_contiguous(x), weight.contiguous(), bias,
                out=out, channel_sum=channel_sum, channel_m2=channel_m2,
            )  # fmt: skip
            return out, channel_sum, channel_m2
        return out, channel_sum.zero_(), channel_m2.zero_()

    def backward_weight(grad_out, x, kh, kw):
        grad_weight, grad_bias = _backward_weight_outputs(x, kh, kw)
        if x.numel():
            kernels().backward_weight(
                rows_contiguous(grad_out), rows_contiguous(x), grad_weight=grad_weight, grad_bias=grad_bias
            )
            return grad_weight, grad_bias
        return grad_weight.zero_(), grad_bias.zero_()

    define(
        "local_aggregation_forward",
        backend,
        "(Tensor x, Tensor weight, Tensor? bias) -> Tensor",
        forward,
        lambda x, weight, bias: _forward_outputs(x),
        _filter_flops,
    )
    define(
        "local_aggregation_forward_with_moments",
        backend,
        "(Tensor x, Tensor weight, Tensor? bias) -> (Tensor, Tensor, Tensor)",
        forward_with_moments,
        lambda x, weight, bias: _forward_with_moments_outputs(x),
        _filter_flops,
    )
    define(
        "local_aggregation_backward_weight",
        backend,
        "(Tensor grad_out, Tensor x, SymInt kh, SymInt kw) -> (Tensor, Tensor)",
        backward_weight,
        lambda grad_out, x, kh, kw: _backward_weight_outputs(x, kh, kw),
        lambda grad_out, x, kh, kw, **_: 2 * prod(x) * kh * kw,
    )


for _backend in COMPILED:
    _register(_backend)
