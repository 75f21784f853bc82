# SPDX-License-Identifier: MIT
"""Gradients of `mix_fwd_<backend>` in terms of the same backend's operators."""

import torch
from torch import Tensor

from ..backend import DEVICE_TYPES
from ..library import LIBRARY, NAMESPACE, refuse_double_backward
from ..local_aggregation.autograd import local_weight_gradient
from .schema import WITH_LOCAL_GRADIENT


def mix_forward(
    backend: str,
    qkv: tuple[Tensor, ...],
    alpha: Tensor,
    local_weight: Tensor | None,
    local_bias: Tensor | None,
    affinity: Tensor | None,
    height: int,
    width: int,
    scale: float,
) -> Tensor:
    """Differentiable alpha · softmax(scale q kᵀ) v + static(v) on `backend`; parameters as in `schema`.

    `qkv` is (q, k, v), or one packed projection alone.
    """
    name = backend if len(qkv) == 3 else f"packed_{backend}"
    operator = getattr(torch.ops.container_kernels, f"mix_fwd_{name}")
    return operator(*qkv, alpha, local_weight, local_bias, affinity, height, width, scale)[0]


def dense_gradient(grad_out: Tensor, v: Tensor) -> Tensor:
    """grad_affinity[m,i,j] = Σ_{b,d} grad_out[b,i,m,d] v[b,j,m,d]: a matrix product, which a library does best."""
    heads, tokens = v.shape[2], v.shape[1]
    rows = grad_out.permute(2, 1, 0, 3).reshape(heads, tokens, -1)
    return rows @ v.permute(2, 0, 3, 1).reshape(heads, -1, tokens)


def _register(backend: str, packed: bool) -> None:
    name = f"packed_{backend}" if packed else backend
    count = 1 if packed else 3

    def setup_context(ctx, inputs, output):
        alpha, local_weight, _, affinity, *ctx.geometry = inputs[count:]
        _, logsumexp = output
        ctx.mark_non_differentiable(logsumexp)
        ctx.save_for_backward(*inputs[:count], alpha, local_weight, affinity, logsumexp)

    def backward(ctx, grad_out, _):
        *qkv, alpha, local_weight, affinity, logsumexp = ctx.saved_tensors
        need_weight, need_bias, need_affinity = ctx.needs_input_grad[count + 1 : count + 4]
        grad_weight = grad_bias = grad_affinity = None
        v = qkv[0].select(2, 2) if packed else qkv[2]
        if (need_weight or need_bias) and backend in WITH_LOCAL_GRADIENT:
            operator = getattr(torch.ops.container_kernels, f"mix_bwd_local_{name}")
            *grads, grad_weight, grad_bias = operator(grad_out, *qkv, alpha, local_weight, logsumexp, *ctx.geometry)
        else:
            operator = getattr(torch.ops.container_kernels, f"mix_bwd_{name}")
            grads = operator(grad_out, *qkv, alpha, local_weight, affinity, logsumexp, *ctx.geometry)
            if need_weight or need_bias:
                grid = tuple(ctx.geometry[:2])
                grad_weight, grad_bias = local_weight_gradient(
                    backend, as_image(grad_out, grid), as_image(v, grid), *local_weight.shape[1:]
                )
        if need_affinity:
            grad_affinity = dense_gradient(grad_out, v).to(affinity.dtype)
        return (
            *grads,
            grad_weight if need_weight else None,
            grad_bias if need_bias else None,
            grad_affinity,
            None,
            None,
            None,
        )

    torch.library.register_autograd(f"{NAMESPACE}::mix_fwd_{name}", backward, setup_context=setup_context, lib=LIBRARY)
    refuse_double_backward(f"mix_bwd_{name}", backend)
    if backend in WITH_LOCAL_GRADIENT:
        refuse_double_backward(f"mix_bwd_local_{name}", backend)


def as_image(tokens: Tensor, grid_size: tuple[int, int]) -> Tensor:
    """(B, H·W, M, D) as (B, H, W, M·D); a view whenever the heads lie side by side, as in a packed projection."""
    # Not flatten and unflatten, which gradients of many outputs at once (is_grads_batched) know no rule for.
    batch, _, heads, head_dim = tokens.shape
    return tokens.reshape(batch, *grid_size, heads * head_dim)


for _backend in DEVICE_TYPES:
    for _packed in (False, True):
        _register(_backend, _packed)
