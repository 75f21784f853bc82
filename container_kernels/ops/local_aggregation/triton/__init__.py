# SPDX-License-Identifier: MIT
"""The Triton backend of the depthwise operation: launches."""

import torch
import triton
from torch import Tensor

from ...triton_primitives import device_of, tap_major
from . import config as configs
from .backward import backward_weight_kernel
from .config import DepthwiseConfig
from .forward import forward_kernel

__all__ = ["DepthwiseConfig", "backward_weight", "forward", "forward_with_statistics"]


def tiles(config: DepthwiseConfig, kernel_h: int, kernel_w: int) -> dict:
    """The constexpr and launch arguments that both kernels take."""
    return {
        "KERNEL_H": kernel_h,
        "KERNEL_W": kernel_w,
        "COLUMNS": config.columns,
        "CHANNELS": config.channels,
        "num_warps": config.num_warps,
        "enable_fp_fusion": True,  # Triton 3.10 changes the default
    }


def forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, *, out: Tensor, config: DepthwiseConfig | None = None
) -> None:
    """Write the depthwise cross-correlation of x (B, H, W, C) with weight (C, kh, kw) to `out`."""
    _forward(x, weight, bias, out, None, config or _forward_config(x, weight))


def forward_with_statistics(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    out: Tensor,
    channel_sum: Tensor,
    channel_square_sum: Tensor,
    config: DepthwiseConfig | None = None,
) -> None:
    """`forward`, and Σ out and Σ out² over all pixels (C,): each program's sums, then their sum, in a fixed order."""
    images, height, width, num_channels = x.shape
    config = config or _forward_config(x, weight)
    parts = triton.cdiv(images * width, config.columns) * triton.cdiv(height, config.split)
    partial = torch.empty((parts, 2, num_channels), dtype=channel_sum.dtype, device=x.device)
    _forward(x, weight, bias, out, partial, config)
    torch.sum(partial[:, 0], dim=0, out=channel_sum)
    torch.sum(partial[:, 1], dim=0, out=channel_square_sum)


def _forward_config(x: Tensor, weight: Tensor) -> DepthwiseConfig:
    return configs.forward_config(*x.shape, weight[0].numel())


def _forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor, partial: Tensor | None, config: DepthwiseConfig
) -> None:
    images, height, width, num_channels = x.shape
    _, kernel_h, kernel_w = weight.shape
    blocks = triton.cdiv(images * width, config.columns) * triton.cdiv(num_channels, config.channels)
    with device_of(x):
        forward_kernel[(blocks * triton.cdiv(height, config.split),)](
            x,
            tap_major(weight),
            bias,
            out,
            partial,
            x.stride()[:3],
            images,
            height,
            width,
            num_channels,
            config.split,
            **tiles(config, kernel_h, kernel_w),
        )


def backward_weight(
    grad_out: Tensor,
    x: Tensor,
    *,
    grad_weight: Tensor,
    grad_bias: Tensor,
    config: DepthwiseConfig | None = None,
) -> None:
    """Write the weight (C, kh, kw) and bias (C,) gradients: partial sums, then their sum, in a fixed order."""
    images, height, width, num_channels = x.shape
    _, kernel_h, kernel_w = grad_weight.shape
    config = config or configs.backward_config(images, width, num_channels, kernel_h * kernel_w)
    shape = (config.split, kernel_h * kernel_w + 1, num_channels)
    partial = torch.empty(shape, dtype=grad_weight.dtype, device=x.device)
    with device_of(x):
        backward_weight_kernel[(config.split * triton.cdiv(num_channels, config.channels),)](
            grad_out,
            x,
            partial,
            grad_out.stride()[:3],
            x.stride()[:3],
            images,
            height,
            width,
            num_channels,
            config.split,
            **tiles(config, kernel_h, kernel_w),
        )
        torch.sum(partial[:, :-1], dim=0, out=grad_weight.flatten(1).t())
        torch.sum(partial[:, -1], dim=0, out=grad_bias)
