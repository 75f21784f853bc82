# SPDX-License-Identifier: MIT
"""Gradients of `context_aggregation_forward_<backend>` in terms of the same backend's operators."""

from typing import get_type_hints

from torch import Tensor

from ..dispatch.registration import differentiate, operator_of, refuse_double_backward
from ..local_aggregation.autograd import local_weight_gradient
from .backends import COMPILED
from .inputs import MixArguments
from .schema import WITH_LOCAL_GRADIENT

# At the end of the operators' arguments; tensors come before.
NUMBERS = sum(kind in (int, float) for kind in get_type_hints(MixArguments).values())


def context_aggregation_forward(backend: str, inputs: MixArguments, packed: Tensor | None) -> Tensor:
    """Differentiable alpha · softmax(scale q kᵀ) v + static(v) on `backend`.

    `packed`: the projection (B, N, 3, M, D) whose slices q, k and v are, if they are.
    """
    if packed is None:
        return operator_of("context_aggregation_forward", backend)(*inputs)[0]
    return operator_of("context_aggregation_forward_packed", backend)(packed, *inputs[3:])[0]


def dense_gradient(grad_out: Tensor, v: Tensor) -> Tensor:
    """grad_affinity[m,i,j] = Σ_{b,d} grad_out[b,i,m,d] v[b,j,m,d]: a matrix product, which a library does best."""
    batch, tokens, heads, head_dim = v.shape
    rows = grad_out.permute(2, 1, 0, 3).reshape(heads, tokens, batch * head_dim)
    return rows @ v.permute(2, 0, 3, 1).reshape(heads, batch * head_dim, tokens)


def _register(backend: str, packed: bool) -> None:
    suffix = "_packed" if packed else ""
    count = 1 if packed else 3

    def setup_context(ctx, inputs, output):
        _, logsumexp = output
        ctx.mark_non_differentiable(logsumexp)
        ctx.save_for_backward(logsumexp, *inputs[:-NUMBERS])
        ctx.numbers = inputs[-NUMBERS:]

    def backward(ctx, grad_out, _):
        logsumexp, *tensors = ctx.saved_tensors
        arguments = (*tensors, *ctx.numbers)
        inputs = MixArguments.of(arguments, packed)
        # Of the parameters' gradients, by name.
        needed = dict(zip(MixArguments._fields[3:], ctx.needs_input_grad[count:], strict=True))
        grads = dict.fromkeys(needed)
        need_local = needed["local_weight"] or needed["local_bias"]
        if need_local and backend in WITH_LOCAL_GRADIENT:
            operator = operator_of(f"context_aggregation_backward_with_local{suffix}", backend)
            *grad_qkv, grads["alpha"], grads["local_weight"], grads["local_bias"] = operator(
                grad_out, logsumexp, *arguments
            )
        else:
            operator = operator_of(f"context_aggregation_backward{suffix}", backend)
            *grad_qkv, grads["alpha"] = operator(grad_out, logsumexp, *arguments)
            if need_local:
                grid = (inputs.height, inputs.width)
                grads["local_weight"], grads["local_bias"] = local_weight_gradient(
                    backend, as_image(grad_out, grid), as_image(inputs.v, grid), *inputs.local_weight.shape[1:]
                )
        if needed["affinity"]:
            grads["affinity"] = dense_gradient(grad_out, inputs.v).to(inputs.affinity.dtype)
        return *grad_qkv, *(grads[parameter] if needed[parameter] else None for parameter in needed)

    differentiate(f"context_aggregation_forward{suffix}", backend, backward, setup_context)
    refuse_double_backward(f"context_aggregation_backward{suffix}", backend)
    if backend in WITH_LOCAL_GRADIENT:
        refuse_double_backward(f"context_aggregation_backward_with_local{suffix}", backend)


def as_image(tokens: Tensor, grid_size: tuple[int, int]) -> Tensor:
    """(B, H·W, M, D) as (B, H, W, M·D); a view whenever the heads lie side by side, as in a packed projection."""
    # Not flatten and unflatten, which gradients of many outputs at once (is_grads_batched) know no rule for.
    batch, _, heads, head_dim = tokens.shape
    return tokens.reshape(batch, *grid_size, heads * head_dim)


for _backend in COMPILED:
    for _packed in (False, True):
        _register(_backend, _packed)
