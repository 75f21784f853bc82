# SPDX-License-Identifier: MIT
"""The operators behind deformable attention: definition, output allocation, one kernel and one fake for each backend.

    deformable_attention_forward_<backend>(inputs) -> out (B, Q, M, D)
    deformable_attention_backward_value_<backend>(grad_out, inputs without value) -> grad_value (B, S, M, D)
    deformable_attention_backward_sampling_<backend>(grad_out, inputs) -> grad_locations, grad_weights

`inputs` are the fields of `DeformableArguments`. out, grad_out and grad_value have the dtype of value, the other
gradients those of what they belong to.
"""

from importlib import import_module

from torch import Tensor

from ..common.tensors import new_empty
from ..dispatch.registration import arguments_of, define, parameters_of
from .backends import COMPILED
from .inputs import SAMPLING_ONLY, DeformableArguments


def _forward_outputs(inputs: DeformableArguments) -> Tensor:
    return new_empty(inputs.value, (*inputs.sampling_locations.shape[:3], inputs.value.shape[-1]))


def _backward_value_outputs(grad_out: Tensor, inputs: DeformableArguments) -> Tensor:
    batch, _, heads, head_dim = grad_out.shape
    return new_empty(grad_out, (batch, inputs.pixels, heads, head_dim))


def _backward_sampling_outputs(inputs: DeformableArguments) -> tuple[Tensor, Tensor]:
    locations, weights = inputs.sampling_locations, inputs.attention_weights
    return new_empty(locations, tuple(locations.shape)), new_empty(weights, tuple(weights.shape))


def _register(backend: str) -> None:
    def kernels():
        return import_module(f"{__package__}.{backend}")

    def forward(*arguments):
        inputs = DeformableArguments(*arguments)
        out = _forward_outputs(inputs)
        if out.numel():
            kernels().forward(inputs.readable(), out)
        return out

    def backward_value(grad_out, *arguments):
        inputs = arguments_of(DeformableArguments, arguments, SAMPLING_ONLY)
        grad_value = _backward_value_outputs(grad_out, inputs)
        if not grad_out.numel():
            return grad_value.zero_()
        kernels().backward_value(inputs.readable(), grad_out.contiguous(), grad_value)
        return grad_value

    def backward_sampling(grad_out, *arguments):
        inputs = DeformableArguments(*arguments)
        grads = _backward_sampling_outputs(inputs)
        if grad_out.numel():
            kernels().backward_sampling(inputs.readable(), grad_out.contiguous(), *grads)
        return grads

    parameters = parameters_of(DeformableArguments)
    define(
        "deformable_attention_forward",
        backend,
        f"({parameters}) -> Tensor",
        forward,
        lambda *arguments: _forward_outputs(DeformableArguments(*arguments)),
    )
    define(
        "deformable_attention_backward_value",
        backend,
        f"(Tensor grad_out, {parameters_of(DeformableArguments, SAMPLING_ONLY)}) -> Tensor",
        backward_value,
        lambda grad_out, *arguments: _backward_value_outputs(
            grad_out, arguments_of(DeformableArguments, arguments, SAMPLING_ONLY)
        ),
    )
    define(
        "deformable_attention_backward_sampling",
        backend,
        f"(Tensor grad_out, {parameters}) -> (Tensor, Tensor)",
        backward_sampling,
        lambda grad_out, *arguments: _backward_sampling_outputs(DeformableArguments(*arguments)),
    )


for _backend in COMPILED:
    _register(_backend)
