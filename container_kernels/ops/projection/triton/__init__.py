# SPDX-License-Identifier: MIT
"""The Triton backend of the projection: launches. The backward is made of the library's matrix products."""

import torch
import triton
from torch import Tensor

from ...common.tokens import scaled_samples
from ...common.triton_fitting import fitting
from ...common.triton_matmul import row_scale
from ...common.triton_primitives import device_of, precision
from ...common.triton_rows import filled, filled_size, is_readable, row_unit
from ...statistics import triton_partials
from ..inputs import ProjectionArguments, ProjectionGradients
from . import config as configs
from .config import ProductConfig
from .forward import forward_kernel

__all__ = ["ProductConfig", "backward", "bias_gradient", "forward", "forward_with_moments", "grid", "tiles"]


def tiles(config: ProductConfig, dtype: torch.dtype, unit: int, *depths: int) -> dict:
    """The constexpr and launch arguments of a kernel that computes one tile of products of these depths."""
    return {
        "UNIT": unit,
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


def forward(inputs: ProjectionArguments, out: Tensor) -> None:
    """Write sample_scale · (x weightᵀ + bias) + residual to `out` (B, T, C_out)."""
    _forward(inputs, out, None)


def forward_with_moments(inputs: ProjectionArguments, out: Tensor, channel_sum: Tensor, channel_m2: Tensor) -> None:
    """`forward`, and Σ out and M2 over all tokens (C_out,): each tile's, merged in a fixed order."""
    _forward(inputs, out, (channel_sum, channel_m2))


def _forward(inputs: ProjectionArguments, out: Tensor, moments: tuple[Tensor, Tensor] | None) -> None:
    x, weight, bias, residual, sample_scale = inputs
    batch, tokens, channels = x.shape
    out_channels, dtype = weight.shape[0], x.dtype
    if not is_readable(dtype, channels, out_channels):
        inner, outer = filled_size(channels, dtype), filled_size(out_channels, dtype)
        wide = out.new_empty((batch, tokens, outer))
        wide_moments = moments and (bias.new_empty(outer), bias.new_empty(outer))
        weights = (filled(weight, outer, inner), filled(bias, outer))
        wide_inputs = ProjectionArguments(filled(x, inner), *weights, filled(residual, outer), sample_scale)
        _forward(wide_inputs, wide, wide_moments)
        out.copy_(wide[..., :out_channels])
        for total, wide_total in zip(moments or (), wide_moments or (), strict=True):
            total.copy_(wide_total[:out_channels])
        return
    unit, rows = row_unit(dtype, channels, out_channels), batch * tokens
    tensors = (x, weight, bias, residual, row_scale(sample_scale, tokens), out)
    sizes = (rows, channels // unit, out_channels // unit)

    def options(config: ProductConfig) -> dict:
        return tiles(config, dtype, unit, channels)

    candidates = configs.product_config(channels, out_channels, dtype, precision(dtype))
    with device_of(x):
        # To the compiler the bias is as good as the partial sums, whose number is that of the tiles.
        config = fitting(lambda _: forward_kernel, candidates, (*tensors, moments and bias, *sizes), options)
        parts = triton.cdiv(rows, config.block_m)
        partial = moments and bias.new_empty((parts, triton_partials.ROWS, out_channels))
        forward_kernel[grid(config, rows, out_channels)](*tensors, partial, *sizes, **options(config))
    if moments:
        triton_partials.merge(partial, *moments)


def backward(inputs: ProjectionArguments, grad_out: Tensor, grads: ProjectionGradients) -> None:
    """Write the gradients of x, weight and bias."""
    grad_branch = scaled_samples(grad_out, inputs.sample_scale).flatten(0, 1)
    torch.mm(grad_branch, inputs.weight, out=grads.x.flatten(0, 1))
    torch.mm(grad_branch.t(), inputs.x.flatten(0, 1), out=grads.weight)
    bias_gradient(grad_out, inputs.sample_scale, grad_bias=grads.bias)


def bias_gradient(grad_out: Tensor, sample_scale: Tensor | None, *, grad_bias: Tensor) -> None:
    """Write Σ sample_scale · grad_out (B, T, C_out) over samples and tokens: scaled after the sum, so never rounded."""
    sample_sums = torch.sum(grad_out, dim=1, dtype=grad_bias.dtype)
    if sample_scale is not None:
        sample_sums *= sample_scale[:, None]
    torch.sum(sample_sums, dim=0, out=grad_bias)
