# SPDX-License-Identifier: MIT
"""The Triton backend of the MLP: launches.

Narrow channels: the hidden layer stays on chip (forward.py, backward.py). Wide channels: its activation and gradient
are epilogues of tiled products (hidden.py), and what remains are a projection and the library's products.
"""

import torch
import triton
from torch import Tensor

from ...projection import triton as projection
from ...projection.triton import config as product_configs
from ...triton_primitives import device_of, precision
from ...triton_product import row_scale
from . import config as configs
from .backward import backward_input_kernel, backward_weight_kernel
from .config import ChipConfig
from .forward import forward_kernel
from .hidden import hidden_gradient_kernel, hidden_kernel

__all__ = ["ChipConfig", "backward", "forward"]


def tiles(config: ChipConfig, w1: Tensor, w2: Tensor) -> dict:
    """The constexpr and launch arguments of the kernels that keep the hidden layer on chip."""
    return {
        "PRECISION": precision(w1.dtype),
        "CHANNELS": w1.shape[1],
        "HIDDEN": w1.shape[0],
        "OUT_CHANNELS": w2.shape[0],
        "BLOCK_C": product_configs.padded(w1.shape[1]),
        "BLOCK_O": product_configs.padded(w2.shape[0]),
        "BLOCK_T": config.block_t,
        "BLOCK_H": config.block_h,
        "num_warps": config.num_warps,
        "num_stages": config.num_stages,
        "enable_fp_fusion": True,  # Triton 3.10 changes the default
    }


def forward(
    x: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    sample_scale: Tensor | None,
    residual: bool,
    *,
    out: Tensor,
) -> None:
    """Write sample_scale · (gelu(x w1ᵀ + b1) w2ᵀ + b2) (+ x) to `out`."""
    batch, tokens, channels = x.shape
    hidden, out_channels = w1.shape[0], w2.shape[0]
    rows = batch * tokens
    skip = x if residual else None
    if configs.on_chip(channels, out_channels, x.dtype):
        config = configs.forward_config(channels, out_channels, x.dtype)
        with device_of(x):
            forward_kernel[(triton.cdiv(rows, config.block_t),)](
                x, w1, b1, w2, b2, row_scale(sample_scale, tokens), skip, out, rows, **tiles(config, w1, w2)
            )
        return
    g = torch.empty((batch, tokens, hidden), dtype=x.dtype, device=x.device)
    product = product_configs.product_config(channels, hidden, x.dtype)
    with device_of(x):
        hidden_kernel[projection.grid(product, rows, hidden)](
            x, w1, b1, g, rows, channels, hidden, **projection.tiles(product, x.dtype, channels)
        )
    projection.forward(g, w2, b2, skip, sample_scale, out=out)


def backward(
    grad_out: Tensor,
    x: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    sample_scale: Tensor | None,
    residual: bool,
    *,
    grad_x: Tensor,
    grad_w1: Tensor,
    grad_b1: Tensor,
    grad_w2: Tensor,
    grad_b2: Tensor,
) -> None:
    """Write the gradients of x, the weights and the biases; sums are taken in a fixed order, never by atomics."""
    tokens = x.shape[1]
    grad_out, x, grad_x = (t.flatten(0, 1) for t in (grad_out, x, grad_x))
    inputs = (grad_out, x, w1, b1, w2, row_scale(sample_scale, tokens))
    if configs.on_chip(w1.shape[1], w2.shape[0], w1.dtype):
        _backward_input(*inputs, residual, grad_x, grad_b2)
        _backward_weight(*inputs, grad_w1, grad_b1, grad_w2)
        return
    g, dh = _hidden_gradient(*inputs, grad_b1)
    if residual:
        torch.addmm(grad_out, dh, w1, out=grad_x)
    else:
        torch.mm(dh, w1, out=grad_x)
    torch.mm(dh.t(), x, out=grad_w1)
    torch.mm(grad_out.t(), g, out=grad_w2)
    projection.bias_gradient(grad_out.unflatten(0, (-1, tokens)), sample_scale, grad_bias=grad_b2)


def _backward_input(
    grad_out: Tensor,
    x: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    scale: Tensor | None,
    residual: bool,
    grad_x: Tensor,
    grad_b2: Tensor,
) -> None:
    config = configs.input_config(x.shape[1], w2.shape[0], x.dtype)
    programs = triton.cdiv(x.shape[0], config.block_t)
    partial_b2 = torch.empty((programs, w2.shape[0]), dtype=b1.dtype, device=x.device)
    with device_of(x):
        backward_input_kernel[(programs,)](
            grad_out,
            x,
            w1,
            b1,
            w2,
            scale,
            grad_x,
            partial_b2,
            x.shape[0],
            RESIDUAL=residual,
            **tiles(config, w1, w2),
        )
    torch.sum(partial_b2, dim=0, out=grad_b2)


def _backward_weight(
    grad_out: Tensor,
    x: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    scale: Tensor | None,
    grad_w1: Tensor,
    grad_b1: Tensor,
    grad_w2: Tensor,
) -> None:
    rows, channels = x.shape
    hidden = w1.shape[0]
    config = configs.weight_config(channels, w2.shape[0], x.dtype)
    parts = configs.num_parts(rows, hidden, config)
    sizes = (w1.numel(), w2.numel(), hidden)
    partial = torch.empty((parts, sum(sizes)), dtype=b1.dtype, device=x.device)
    with device_of(x):
        backward_weight_kernel[(parts * triton.cdiv(hidden, config.block_h),)](
            grad_out, x, w1, b1, w2, scale, partial, rows, parts, **tiles(config, w1, w2)
        )
    sums = torch.sum(partial, dim=0).split(sizes)
    for grad, total in zip((grad_w1, grad_w2, grad_b1), sums, strict=True):
        grad.copy_(total.view(grad.shape))


def _hidden_gradient(
    grad_out: Tensor,
    x: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    scale: Tensor | None,
    grad_b1: Tensor,
) -> tuple[Tensor, Tensor]:
    """scale · g and dh, both (B · T, hidden); writes grad_b1."""
    rows, channels = x.shape
    hidden, out_channels = w1.shape[0], w2.shape[0]
    config = configs.gradient_config(channels, out_channels, x.dtype)
    g, dh = torch.empty((2, rows, hidden), dtype=x.dtype, device=x.device)
    partial_b1 = torch.empty((triton.cdiv(rows, config.block_m), hidden), dtype=b1.dtype, device=x.device)
    with device_of(x):
        hidden_gradient_kernel[projection.grid(config, rows, hidden)](
            grad_out,
            x,
            w1,
            b1,
            w2,
            scale,
            g,
            dh,
            partial_b1,
            rows,
            channels,
            hidden,
            out_channels,
            **projection.tiles(config, x.dtype, channels, out_channels),
        )
    torch.sum(partial_b1, dim=0, out=grad_b1)
    return g, dh
