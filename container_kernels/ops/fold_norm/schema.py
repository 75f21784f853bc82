# SPDX-License-Identifier: MIT
"""The operators behind folding: definition, output allocation, one kernel and one fake for each backend.

    fold_norm_forward_<backend>(weight, bias, first, second, count, gamma, beta, eps, dtype) -> folded in dtype, shift
    fold_norm_backward_<backend>(grad_folded, grad_shift, weight, first, second, count, gamma, beta, eps)
        -> grad_weight, grad_first, grad_second, grad_gamma, grad_beta
    fold_norm_track_<backend>(running_mean!, running_var!, num_batches!?, first, second, count, momentum?)

weight and folded are (C_out, C), bias and shift (C_out,), the other vectors (C,): all but the running statistics in the
accumulation dtype. The gradient of bias is grad_shift.
"""

from importlib import import_module

import torch
from torch import Tensor

from ..common.tensors import new_empty
from ..dispatch.registration import define
from .backends import COMPILED


def _forward_outputs(weight: Tensor, bias: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return new_empty(weight, tuple(weight.shape), dtype), new_empty(bias, tuple(bias.shape))


def _backward_outputs(weight: Tensor, first: Tensor) -> tuple[Tensor, ...]:
    return new_empty(weight, tuple(weight.shape)), *(new_empty(first, tuple(first.shape)) for _ in range(4))


def _register(backend: str) -> None:
    def kernels():
        return import_module(f"{__package__}.{backend}")

    def forward(weight, bias, first, second, count, gamma, beta, eps, dtype):
        outputs = folded, shift = _forward_outputs(weight, bias, dtype)
        weight, bias, first, second, gamma, beta = (t.contiguous() for t in (weight, bias, first, second, gamma, beta))
        kernels().forward(weight, bias, first, second, count, gamma, beta, eps, folded=folded, shift=shift)
        return outputs

    def backward(grad_folded, grad_shift, weight, first, second, count, gamma, beta, eps):
        outputs = _backward_outputs(weight, first)
        grad_folded, grad_shift, weight, first, second, gamma, beta = (
            t.contiguous() for t in (grad_folded, grad_shift, weight, first, second, gamma, beta)
        )
        names = ("grad_weight", "grad_first", "grad_second", "grad_gamma", "grad_beta")
        kernels().backward(
            grad_folded, grad_shift, weight, first, second, count, gamma, beta, eps,
            **dict(zip(names, outputs, strict=True)),
        )  # fmt: skip
        return outputs

    def track(running_mean, running_var, num_batches, first, second, count, momentum):
        kernels().track(
            running_mean, running_var, num_batches, first.contiguous(), second.contiguous(), count, momentum
        )

    define(
        "fold_norm_forward",
        backend,
        "(Tensor weight, Tensor bias, Tensor first, Tensor second, SymInt count, Tensor gamma, "
        "Tensor beta, float eps, ScalarType dtype) -> (Tensor, Tensor)",
        forward,
        lambda weight, bias, first, second, count, gamma, beta, eps, dtype: _forward_outputs(weight, bias, dtype),
    )
    define(
        "fold_norm_backward",
        backend,
        "(Tensor grad_folded, Tensor grad_shift, Tensor weight, Tensor first, Tensor second, "
        "SymInt count, Tensor gamma, Tensor beta, float eps) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
        backward,
        lambda grad_folded, grad_shift, weight, first, *rest: _backward_outputs(weight, first),
    )
    define(
        "fold_norm_track",
        backend,
        "(Tensor(a!) running_mean, Tensor(b!) running_var, Tensor(c!)? num_batches, "
        "Tensor first, Tensor second, SymInt count, float? momentum) -> ()",
        track,
        lambda *arguments: None,
    )


for _backend in COMPILED:
    _register(_backend)
