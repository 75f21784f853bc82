# SPDX-License-Identifier: MIT
"""The Triton backend of the projection: launches. The backward is made of the library's matrix products."""

import torch
import triton
from torch import Tensor

from ...tokens import scaled_samples
from ...triton_primitives import device_of, precision
from ...triton_product import row_scale
from . import config as configs
from .config import ProductConfig
from .forward import forward_kernel

__all__ = ["ProductConfig", "backward", "bias_gradient", "forward", "forward_with_statistics", "grid", "tiles"]


def tiles(config: ProductConfig, dtype: torch.dtype, *depths: int) -> dict:
    """The constexpr and launch arguments of a kernel that computes one tile of products of these depths."""
    return {
        "PRECISION": precision(dtype),
        "EVEN_DEPTH": all(depth % config.block_k == 0 for depth in depths),
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "BLOCK_K": config.block_k,
        "num_warps": config.num_warps,
        "num_stages": config.num_stages,
        "enable_fp_fusion": True,  # Triton 3.10 changes the default
    }


def grid(config: ProductConfig, rows: int, columns: int) -> tuple[int]:
    """As many programs as a product has tiles."""
    return (triton.cdiv(rows, config.block_m) * triton.cdiv(columns, config.block_n),)


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    sample_scale: Tensor | None,
    *,
    out: Tensor,
    config: ProductConfig | None = None,
) -> None:
    """Write sample_scale · (x weightᵀ + bias) + residual to `out`; `config` overrides the tiles."""
    config = config or configs.product_config(x.shape[2], weight.shape[0], x.dtype)
    _forward(x, weight, bias, residual, sample_scale, out, None, config)


def forward_with_statistics(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    sample_scale: Tensor | None,
    *,
    out: Tensor,
    channel_sum: Tensor,
    channel_square_sum: Tensor,
    config: ProductConfig | None = None,
) -> None:
    """`forward`, and Σ out and Σ out² over all tokens (C_out,): each tile's sums, then their sum, in a fixed order."""
    config = config or configs.product_config(x.shape[2], weight.shape[0], x.dtype)
    parts = triton.cdiv(x.shape[0] * x.shape[1], config.block_m)
    partial = torch.empty((parts, 2, weight.shape[0]), dtype=channel_sum.dtype, device=x.device)
    _forward(x, weight, bias, residual, sample_scale, out, partial, config)
    torch.sum(partial[:, 0], dim=0, out=channel_sum)
    torch.sum(partial[:, 1], dim=0, out=channel_square_sum)


def _forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    sample_scale: Tensor | None,
    out: Tensor,
    partial: Tensor | None,
    config: ProductConfig,
) -> None:
    batch, tokens, channels = x.shape
    out_channels = weight.shape[0]
    rows = batch * tokens
    with device_of(x):
        forward_kernel[grid(config, rows, out_channels)](
            x,
            weight,
            bias,
            residual,
            row_scale(sample_scale, tokens),
            out,
            partial,
            rows,
            channels,
            out_channels,
            **tiles(config, x.dtype, channels),
        )


def backward(
    grad_out: Tensor,
    x: Tensor,
    weight: Tensor,
    sample_scale: Tensor | None,
    *,
    grad_x: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
) -> None:
    """Write the gradients of x, weight and bias."""
    grad_branch = scaled_samples(grad_out, sample_scale).flatten(0, 1)
    torch.mm(grad_branch, weight, out=grad_x.flatten(0, 1))
    torch.mm(grad_branch.t(), x.flatten(0, 1), out=grad_weight)
    bias_gradient(grad_out, sample_scale, grad_bias=grad_bias)


def bias_gradient(grad_out: Tensor, sample_scale: Tensor | None, *, grad_bias: Tensor) -> None:
    """Write Σ sample_scale · grad_out (B, T, C_out) over samples and tokens: scaled after the sum, so never rounded."""
    sample_sums = torch.sum(grad_out, dim=1, dtype=grad_bias.dtype)
    if sample_scale is not None:
        sample_sums *= sample_scale[:, None]
    torch.sum(sample_sums, dim=0, out=grad_bias)
