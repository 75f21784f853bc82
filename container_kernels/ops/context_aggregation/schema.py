# SPDX-License-Identifier: MIT
"""The operators behind context aggregation: definition, output allocation, one kernel and one fake for each backend.

    context_aggregation_forward_<backend>(inputs) -> out, logsumexp
    context_aggregation_backward_<backend>(grad_out, logsumexp, inputs) -> grad_q, grad_k, grad_v, grad_alpha
    context_aggregation_backward_with_local_<backend>(grad_out, logsumexp, inputs)
        -> grad_q, grad_k, grad_v, grad_alpha, grad_local_weight, grad_local_bias

`inputs` are the fields of `MixArguments`. out and grad_out are (B, N, M, D); logsumexp (B, M, N), grad_alpha (M,) and
the gradients of the local term are in the accumulation dtype. logsumexp has the base in which the backend's
exponentials are: a log of the sum below the rounding of the largest score then leaves that score as it is.

The last operator exists only where a kernel does it all in one pass (`WITH_LOCAL_GRADIENT`); otherwise the local term's
gradients are left to the operators of local aggregation.

Each has a twin `…_packed_<backend>` that takes one packed projection (B, N, 3, M, D) for q, k, v and gives one packed
gradient: the three slices, written in place, need not be glued together for the projection's backward.
"""

from collections.abc import Callable
from functools import partial
from importlib import import_module
from math import prod

from torch import Tensor

from ..common.tensors import accumulation_dtype, new_empty, rows_contiguous
from ..dispatch.registration import define, parameters_of
from .backends import COMPILED
from .inputs import MixArguments, MixGradients

WITH_LOCAL_GRADIENT = ("cuda",)


def _forward_outputs(inputs: MixArguments) -> tuple[Tensor, Tensor]:
    batch, tokens, heads, _ = inputs.v.shape
    logsumexp = new_empty(inputs.v, (batch, heads, tokens), accumulation_dtype(inputs.v.dtype))
    return new_empty(inputs.v, tuple(inputs.v.shape)), logsumexp


def _gradients(inputs: MixArguments, packed: bool, local: bool) -> tuple[tuple[Tensor, ...], MixGradients]:
    """A backward operator's results, and the same as backends write them; `local`: with those of the local term."""
    v, dtype = inputs.v, accumulation_dtype(inputs.v.dtype)
    if packed:
        batch, tokens, heads, head_dim = v.shape
        results = (new_empty(v, (batch, tokens, 3, heads, head_dim)),)
        q, k, v = results[0].unbind(2)
    else:
        results = q, k, v = tuple(new_empty(t, tuple(t.shape)) for t in inputs[:3])
    parameters = [new_empty(v, (v.shape[2],), dtype)]
    if local:
        shape = tuple(inputs.local_weight.shape)
        parameters += [new_empty(v, shape, dtype), new_empty(v, shape[:1], dtype)]
    return (*results, *parameters), MixGradients(q, k, v, *parameters)


def _flops(products: int, first: int, packed: bool) -> Callable[..., int]:
    """Of `products` N×N, one more with a dense affinity, and the filters; `inputs` begin with argument `first`."""

    def count(*arguments, **_) -> int:
        qkv, parameters = arguments[first], arguments[first + (1 if packed else 3) :]
        batch, tokens, *_, heads, head_dim = qkv
        inputs = MixArguments(None, None, None, *parameters)
        weight, is_dense = inputs.local_weight, inputs.affinity is not None
        filters = 0 if weight is None else 2 * batch * tokens * heads * head_dim * prod(weight[1:])
        return 2 * (products + is_dense) * batch * heads * tokens**2 * head_dim + filters

    return count


def _register(backend: str, packed: bool) -> None:
    suffix = "_packed" if packed else ""
    qkv = "Tensor qkv" if packed else "Tensor q, Tensor k, Tensor v"
    inputs = f"{qkv}, {parameters_of(MixArguments, skip=('q', 'k', 'v'))}"
    grads = ", ".join(["Tensor"] * (2 if packed else 4))

    def kernels():
        return import_module(f"{__package__}.{backend}")

    def forward(*arguments):
        inputs = MixArguments.of(arguments, packed)
        out, logsumexp = _forward_outputs(inputs)
        if out.numel():
            kernels().forward(inputs.readable(), out, logsumexp)
        return out, logsumexp

    def backward(grad_out, logsumexp, *arguments, local=False):
        inputs = MixArguments.of(arguments, packed)
        results, grads = _gradients(inputs, packed, local)
        if grad_out.numel():
            kernels().backward(inputs.readable(), rows_contiguous(grad_out), logsumexp.contiguous(), grads)
        else:
            for grad in grads[3:]:
                if grad is not None:
                    grad.zero_()
        return results

    def fake_backward(grad_out, logsumexp, *arguments, local=False):
        return _gradients(MixArguments.of(arguments, packed), packed, local)[0]

    define(
        f"context_aggregation_forward{suffix}",
        backend,
        f"({inputs}) -> (Tensor, Tensor)",
        forward,
        lambda *arguments: _forward_outputs(MixArguments.of(arguments, packed)),
        _flops(2, 0, packed),
    )
    signature = f"(Tensor grad_out, Tensor logsumexp, {inputs})"
    define(
        f"context_aggregation_backward{suffix}",
        backend,
        f"{signature} -> ({grads})",
        backward,
        fake_backward,
        _flops(5, 2, packed),
    )
    if backend in WITH_LOCAL_GRADIENT:
        define(
            f"context_aggregation_backward_with_local{suffix}",
            backend,
            f"{signature} -> ({grads}, Tensor, Tensor)",
            partial(backward, local=True),
            partial(fake_backward, local=True),
            _flops(5, 2, packed),
        )


for _backend in COMPILED:
    for _packed in (False, True):
        _register(_backend, _packed)
