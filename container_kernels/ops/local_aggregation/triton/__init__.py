# SPDX-License-Identifier: MIT
"""The Triton backend of the depthwise operation: launches."""

import torch
import triton
from torch import Tensor

from ...common.triton_fitting import fitting
from ...common.triton_primitives import device_of, tap_major
from ...statistics import triton_partials
from . import config as configs
from .backward import backward_weight_kernel
from .config import LocalConfig
from .forward import forward_kernel
from .wide import wide_backward_weight_kernel, wide_forward_kernel

__all__ = ["LocalConfig", "backward_weight", "forward", "forward_with_moments"]


def tiles(config: LocalConfig) -> dict:
    """The constexpr and launch arguments that all kernels take."""
    return {
        "COLUMNS": config.columns,
        "CHANNELS": config.channels,
        "num_warps": config.num_warps,
        "enable_fp_fusion": True,  # Triton 3.10 changes the default
    }


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, *, out: Tensor) -> None:
    """Write the depthwise cross-correlation of x (B, H, W, C) with weight (C, kh, kw) to `out`."""
    _forward(x, weight, bias, out, None)


def forward_with_moments(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    out: Tensor,
    channel_sum: Tensor,
    channel_m2: Tensor,
) -> None:
    """`forward`, and Σ out and M2 over all pixels (C,): each program's, merged in a fixed order."""
    _forward(x, weight, bias, out, (channel_sum, channel_m2))


def _forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor, statistics: tuple[Tensor, Tensor] | None
) -> None:
    images, height, width, num_channels = x.shape
    _, kernel_h, kernel_w = weight.shape
    inputs = (x, tap_major(weight), bias, out)
    sizes = (x.stride()[:3], images, height, width, num_channels)

    wide = configs.is_wide(kernel_h, kernel_w)
    window = (kernel_h, kernel_w) if wide else ()
    kernel = wide_forward_kernel if wide else forward_kernel

    def options(config: LocalConfig) -> dict:
        return tiles(config) if wide else tiles(config) | {"KERNEL_H": kernel_h, "KERNEL_W": kernel_w}

    candidates = configs.forward_config(images, height, width, num_channels, kernel_h * kernel_w)
    with device_of(x):
        # To the compiler a channel's sum is as good as the partial sums, whose number is that of the tiles.
        arguments = (*inputs, statistics and statistics[0], *sizes, height, *window)
        config = fitting(lambda _: kernel, candidates, arguments, options)
        blocks = triton.cdiv(images * width, config.columns)
        strips = triton.cdiv(height, config.split)
        programs = blocks * strips * triton.cdiv(num_channels, config.channels)
        partial = statistics and statistics[0].new_empty((blocks * strips, triton_partials.ROWS, num_channels))
        kernel[(programs,)](*inputs, partial, *sizes, config.split, *window, **options(config))
    if statistics:
        triton_partials.merge(partial, *statistics)


def backward_weight(grad_out: Tensor, x: Tensor, *, grad_weight: Tensor, grad_bias: Tensor) -> None:
    """Write the weight (C, kh, kw) and bias (C,) gradients: partial sums, then their sum, in a fixed order."""
    images, height, width, num_channels = x.shape
    _, kernel_h, kernel_w = grad_weight.shape
    sizes = (grad_out.stride()[:3], x.stride()[:3], images, height, width, num_channels)

    wide = configs.is_wide(kernel_h, kernel_w)
    window = (kernel_h, kernel_w) if wide else ()
    kernel = wide_backward_weight_kernel if wide else backward_weight_kernel

    def options(config: LocalConfig) -> dict:
        return tiles(config) if wide else tiles(config) | {"KERNEL_H": kernel_h, "KERNEL_W": kernel_w}

    candidates = configs.backward_config(images, width, num_channels, kernel_h * kernel_w)
    with device_of(x):
        config = fitting(lambda _: kernel, candidates, (grad_out, x, grad_bias, *sizes, 1, *window), options)
        sums = kernel_h * kernel_w + 1
        partial = grad_weight.new_empty((config.split, sums, num_channels))
        programs = config.split * triton.cdiv(num_channels, config.channels) * (sums if wide else 1)
        kernel[(programs,)](grad_out, x, partial, *sizes, config.split, *window, **options(config))
        torch.sum(partial[:, :-1], dim=0, out=grad_weight.flatten(1).t())
        torch.sum(partial[:, -1], dim=0, out=grad_bias)
