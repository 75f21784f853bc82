# SPDX-License-Identifier: MIT
"""The definition of context aggregation in plain PyTorch: any dtype, differentiable any number of times."""

import torch
from torch import Tensor

from ..common.tensors import accumulation_dtype, converted
from ..local_aggregation.reference import local_aggregation_reference


def context_aggregation_reference(
    q: Tensor | None,
    k: Tensor | None,
    v: Tensor,
    alpha: Tensor | float,
    beta: Tensor | float,
    local_weight: Tensor | None,
    local_bias: Tensor | None,
    affinity: Tensor | None,
    grid_size: tuple[int, int] | None,
    scale: float,
) -> Tensor:
    """y[b,i,m] = alpha[m] Σ_j softmax_j(scale q[b,i,m]·k[b,j,m]) v[b,j,m] + beta[m] static(v)[b,i,m].

    static(v) is the depthwise convolution of v on its grid plus Σ_j affinity[m,i,j] v[b,j,m].
    """
    dtype = accumulation_dtype(v.dtype)
    values = converted(v, dtype)
    out = torch.zeros_like(values)
    if q is not None:
        scores = torch.einsum("bimd,bjmd->bmij", converted(q, dtype) * scale, converted(k, dtype))
        dynamic = torch.einsum("bmij,bjmd->bimd", scores.softmax(-1), values)
        out = out + _over_heads(alpha, values) * dynamic
    if local_weight is not None:
        image = values.unflatten(1, grid_size).flatten(3)
        local = local_aggregation_reference(image, local_weight, local_bias, residual=False)
        out = out + _over_heads(beta, values) * local.view_as(values)
    if affinity is not None:
        out = out + _over_heads(beta, values) * torch.einsum("mij,bjmd->bimd", converted(affinity, dtype), values)
    return converted(out, v.dtype).contiguous()


def _over_heads(factor: Tensor | float, values: Tensor) -> Tensor | float:
    """alpha or beta, shaped to multiply `values` (B, N, M, D)."""
    if not isinstance(factor, Tensor):
        return float(factor)
    return converted(factor.to(values.device), values.dtype).reshape(-1, 1)
