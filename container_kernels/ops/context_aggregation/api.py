# SPDX-License-Identifier: MIT
"""`context_aggregation`: the learnable mix of dynamic attention and static aggregation, in one pass."""

import math

import torch
from torch import Tensor

from ..common.tensors import accumulation_dtype
from ..common.validation import check_tensor
from ..dispatch import autocast
from ..dispatch.backend import choose
from ..local_aggregation.autograd import local_aggregation_forward
from .autograd import as_image, context_aggregation_forward
from .backends import COMPILED, why_not
from .inputs import MixArguments
from .reference import context_aggregation_reference
from .validation import validate


def context_aggregation(
    q: Tensor | None,
    k: Tensor | None,
    v: Tensor,
    *,
    alpha: Tensor | float = 1.0,
    beta: Tensor | float = 1.0,
    local_weight: Tensor | None = None,
    local_bias: Tensor | None = None,
    affinity: Tensor | None = None,
    grid_size: tuple[int, int] | None = None,
    scale: float | None = None,
    backend: str | None = None,
) -> Tensor:
    """Aggregate values over space with a mix of a dynamic and a static affinity, per head m:

        y[b,i,m] = alpha[m] · Σ_j softmax_j(scale · q[b,i,m]·k[b,j,m]) v[b,j,m]  +  beta[m] · static(v)[b,i,m]

    the paper's Y = (alpha · A_dyn(X) + beta · A_stat) V. static(v) is a depthwise convolution of v on its grid
    (`local_weight`), the product with a learned N×N matrix (`affinity`), or the sum of both. With the dynamic term
    present everything is computed by one kernel that reads q, k and v once and never stores an N×N matrix.

    Args:
        q, k: (B, N, M, D) queries and keys, both or neither (then there is no dynamic term).
        v: (B, N, M, D) values. Any strides with a contiguous last dimension: the slices of one packed
            (B, N, 3, M, D) projection are read in place. float32, bfloat16, float16 or float64.
        alpha, beta: weight of the dynamic and of the static term: a number or a tensor (), (1,) or (M,).
        local_weight: (M·D, kh, kw), one filter a channel, kh and kw odd, up to 11; zero padding, cross-correlation
            as in `conv2d`.
        local_bias: (M·D,).
        affinity: (M, N, N), row i holds the weights of output token i.
        grid_size: (H, W) with H·W = N, tokens in row-major order; needed with `local_weight`.
        scale: factor on q·k, 1/√D by default.
        backend: "cuda", "triton", "cpu", "reference", or None for the fastest that serves. A dense affinity without
            the dynamic term is one matrix product of the library, whichever backend is chosen.

    Returns:
        (B, N, M, D), contiguous, dtype of `v` (of autocast, when that is on). Sums run in float32 (float64 for
        float64). The same inputs give the same bits, forward and backward, on one device and build.

    Raises:
        ValueError: a shape, device or value does not fit; the message names the argument.
        TypeError: an argument has the wrong kind or dtype.
        RuntimeError: the backend asked for cannot serve this call; the message says why.
    """
    with_autocast = autocast.is_active(v)
    parameters = (alpha, beta, local_weight, local_bias, affinity, grid_size, scale)
    validate(q, k, v, *parameters, same_dtype=not with_autocast)
    if with_autocast:
        device_type = v.device.type
        with torch.autocast(device_type, enabled=False):
            q, k, v = (autocast.cast(t, device_type) for t in (q, k, v))
            return _context_aggregation((q, k, v), None, *parameters, backend)
    return _context_aggregation((q, k, v), None, *parameters, backend)


def packed_context_aggregation(
    packed: Tensor,
    *,
    alpha: Tensor | float = 1.0,
    beta: Tensor | float = 1.0,
    local_weight: Tensor | None = None,
    local_bias: Tensor | None = None,
    affinity: Tensor | None = None,
    grid_size: tuple[int, int] | None = None,
    scale: float | None = None,
    backend: str | None = None,
) -> Tensor:
    """`context_aggregation` of the q, k and v that lie in one packed projection (B, N, 3, M, D).

    The same numbers; its gradient is written as one tensor, where the gradients of three slices would first have to be
    copied together. Arguments, result and errors as there.
    """
    check_tensor("packed", packed, 5, "(B, N, 3, M, D)")
    if packed.shape[2] != 3:
        raise ValueError(f"packed: expected (B, N, 3, M, D), got {tuple(packed.shape)}")
    parameters = (alpha, beta, local_weight, local_bias, affinity, grid_size, scale)
    qkv = packed.unbind(2)
    validate(*qkv, *parameters, same_dtype=True)
    if autocast.is_active(packed):
        device_type = packed.device.type
        with torch.autocast(device_type, enabled=False):
            packed = autocast.cast(packed, device_type)
            return _context_aggregation(packed.unbind(2), packed, *parameters, backend)
    return _context_aggregation(qkv, packed, *parameters, backend)


def _context_aggregation(
    qkv, packed, alpha, beta, local_weight, local_bias, affinity, grid_size, scale, backend
) -> Tensor:
    q, k, v = qkv
    head_dim = v.shape[-1]
    scale = 1 / math.sqrt(head_dim) if scale is None else float(scale)
    op = "local_aggregation" if q is None else "context_aggregation"
    tensors = (v, q, k, alpha, beta, local_weight, local_bias, affinity)
    chosen = choose(op, backend, why_not, tensors, q is not None, affinity is not None, compiled=COMPILED)
    if chosen == "reference":
        return context_aggregation_reference(q, k, v, alpha, beta, local_weight, local_bias, affinity, grid_size, scale)

    # beta joins the static parameters here, on small tensors, where autograd does its gradient for nothing.
    dtype = accumulation_dtype(v.dtype)
    if local_weight is not None:
        local_weight = _scaled(local_weight, beta, head_dim, dtype)
        local_bias = None if local_bias is None else _scaled(local_bias, beta, head_dim, dtype)
    if affinity is not None:
        affinity = _scaled(affinity, beta, 1, dtype)
    if q is None:
        return _static(chosen, v, local_weight, local_bias, affinity, grid_size)
    height, width = (0, 0) if local_weight is None else grid_size
    alpha = _per_head(alpha, v, dtype)
    inputs = MixArguments(q, k, v, alpha, local_weight, local_bias, affinity, height, width, scale)
    return context_aggregation_forward(chosen, inputs, packed)


def _static(chosen: str, v, local_weight, local_bias, affinity, grid_size) -> Tensor:
    """static(v) alone: local aggregation is an op of its own, a dense affinity one matrix product of the library."""
    out = None
    if local_weight is not None:
        out = local_aggregation_forward(chosen, as_image(v, grid_size), local_weight, local_bias).view(v.shape)
    if affinity is not None:
        dense = torch.einsum("mij,bjmd->bimd", affinity.to(v.dtype), v)
        out = dense if out is None else out + dense
    return out.contiguous()


def _per_head(alpha: Tensor | float, v: Tensor, dtype: torch.dtype) -> Tensor:
    """alpha as an (M,) tensor of the accumulation dtype on the device of v."""
    heads = v.shape[2]
    if isinstance(alpha, Tensor):
        return alpha.to(device=v.device, dtype=dtype).expand(heads)
    return torch.full((heads,), float(alpha), dtype=dtype, device=v.device)


def _scaled(parameter: Tensor, beta: Tensor | float, channels: int, dtype: torch.dtype) -> Tensor:
    """beta[m] · parameter in the accumulation dtype, where `channels` leading entries belong to each head."""
    parameter = parameter.to(dtype)
    if not isinstance(beta, Tensor):
        return parameter if beta == 1 else parameter * float(beta)
    beta = beta.to(device=parameter.device, dtype=dtype)
    if beta.numel() > 1:
        beta = beta.repeat_interleave(channels)
    return parameter * beta.reshape(-1, *[1] * (parameter.ndim - 1))
