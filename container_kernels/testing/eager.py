# SPDX-License-Identifier: MIT
"""The operations as a user of plain PyTorch would write them: baselines for error budgets and for speed."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops.common.tensors import accumulation_dtype


def eager_context_aggregation(
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
) -> Tensor:
    """`context_aggregation` by `scaled_dot_product_attention`, `conv2d`, `matmul` and a weighted sum, in one dtype."""
    heads, head_dim = v.shape[2:]
    values = v.transpose(1, 2)  # (B, M, N, D)
    dynamic = static = None
    if q is not None:
        dynamic = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), values, scale=scale)
        dynamic = _per_head(alpha, v) * dynamic
    if local_weight is not None:
        image = v.flatten(2).transpose(1, 2).unflatten(2, grid_size)  # (B, C, H, W)
        kh, kw = local_weight.shape[1:]
        weight = local_weight.to(v.dtype)[:, None]
        bias = None if local_bias is None else local_bias.to(v.dtype)
        static = F.conv2d(image, weight, bias, padding=(kh // 2, kw // 2), groups=heads * head_dim)
        static = static.flatten(2).unflatten(1, (heads, head_dim)).transpose(2, 3)
    if affinity is not None:
        dense = affinity.to(v.dtype) @ values
        static = dense if static is None else static + dense
    if static is not None:
        static = _per_head(beta, v) * static
    out = static if dynamic is None else dynamic if static is None else dynamic + static
    return out.transpose(1, 2)


def eager_local_aggregation(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, residual: bool = False) -> Tensor:
    """`local_aggregation` by `conv2d`, in one dtype."""
    kh, kw = weight.shape[1:]
    image = x.permute(0, 3, 1, 2)
    bias = None if bias is None else bias.to(x.dtype)
    out = F.conv2d(image, weight.to(x.dtype)[:, None], bias, padding=(kh // 2, kw // 2), groups=weight.shape[0])
    return (out + image if residual else out).permute(0, 2, 3, 1)


def eager_fused_mlp(
    x: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    *,
    residual: bool = False,
    sample_scale: Tensor | None = None,
) -> Tensor:
    """`fused_mlp` by two `linear` with `gelu` between, in one dtype."""
    out = eager_projection(F.gelu(eager_projection(x, w1, b1)), w2, b2, sample_scale=sample_scale)
    return x + out if residual else out


def eager_projection(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    residual: Tensor | None = None,
    sample_scale: Tensor | None = None,
) -> Tensor:
    """`projection` by `linear`, a product with the mask and a sum, in one dtype."""
    out = F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))
    if sample_scale is not None:
        out = out * sample_scale.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))
    return out if residual is None else residual.to(x.dtype) + out


def eager_deformable_attention(
    value: Tensor,
    spatial_shapes: list[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """`deformable_attention` by `grid_sample` per level, as models have it that load no extension.

    In float32 (float64 for float64): in 16 bits `grid_sample` has other, coarser locations.
    """
    dtype = accumulation_dtype(value.dtype)
    batch, _, heads, head_dim = value.shape
    grids = 2 * sampling_locations.to(dtype) - 1
    sampled = []
    maps = value.to(dtype).split([height * width for height, width in spatial_shapes], dim=1)
    for level, (size, pixels) in enumerate(zip(spatial_shapes, maps, strict=True)):
        images = pixels.permute(0, 2, 3, 1).reshape(batch * heads, head_dim, *size)
        grid = grids[:, :, :, level].transpose(1, 2).flatten(0, 1)
        sampled.append(F.grid_sample(images, grid, padding_mode="zeros", align_corners=False))
    weights = attention_weights.to(dtype).transpose(1, 2).flatten(0, 1).flatten(2)[:, None]
    out = (torch.stack(sampled, dim=-2).flatten(-2) * weights).sum(-1)  # (B · M, D, Q)
    return out.unflatten(0, (batch, heads)).permute(0, 3, 1, 2).to(value.dtype)


def _per_head(factor: Tensor | float, v: Tensor) -> Tensor | float:
    return factor if isinstance(factor, float | int) else factor.to(v.dtype).reshape(-1, 1, 1)
