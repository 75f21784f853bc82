# SPDX-License-Identifier: MIT
"""The Triton backend of the MLP: launches.

Narrow channels: the hidden layer stays on chip (narrow_forward.py, narrow_backward.py). Wide channels: its activation
and gradient are epilogues of tiled products (wide.py), and what remains are a projection and cuBLAS's products.
"""

import torch
import triton
from torch import Tensor

from ...common.triton_fitting import fitting
from ...common.triton_matmul import row_scale
from ...common.triton_primitives import device_of, precision
from ...common.triton_rows import filled, filled_size, is_readable, row_unit
from ...projection import triton as projection
from ...projection.inputs import ProjectionArguments
from ...projection.triton import ProductConfig
from ...projection.triton import config as product_configs
from ..inputs import MlpArguments, MlpGradients
from . import config as configs
from .config import ChipConfig
from .narrow_backward import backward_input_kernel, backward_weight_kernel
from .narrow_forward import forward_kernel
from .wide import hidden_gradient_kernel, hidden_kernel

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


def forward(inputs: MlpArguments, out: Tensor) -> None:
    """Write sample_scale · (gelu(x w1ᵀ + b1) w2ᵀ + b2) (+ x) to `out` (B, T, C_out)."""
    x, w1, b1, w2, b2, sample_scale, residual = inputs
    batch, tokens, channels = x.shape
    (out_channels, hidden), dtype = w2.shape, x.dtype
    if not is_readable(dtype, channels, hidden, out_channels):
        c, h, o = (filled_size(size, dtype) for size in (channels, hidden, out_channels))
        wide = out.new_empty((batch, tokens, o))
        weights = (filled(w1, h, c), filled(b1, h), filled(w2, o, h), filled(b2, o))
        forward(MlpArguments(filled(x, c), *weights, sample_scale, residual), wide)
        out.copy_(wide[..., :out_channels])
        return
    skip = x if residual else None
    if not configs.on_chip(channels, out_channels, dtype):
        g = _hidden(x, w1, b1)
        projection.forward(ProjectionArguments(g, w2, b2, skip, sample_scale), out)
        return
    rows = batch * tokens
    arguments = (x, w1, b1, w2, b2, row_scale(sample_scale, tokens), skip, out, rows)

    def options(config: ChipConfig) -> dict:
        return tiles(config, w1, w2)

    candidates = configs.forward_config(channels, out_channels, dtype, precision(dtype))
    with device_of(x):
        config = fitting(lambda _: forward_kernel, candidates, arguments, options)
        forward_kernel[(triton.cdiv(rows, config.block_t),)](*arguments, **options(config))


def _hidden(x: Tensor, w1: Tensor, b1: Tensor) -> Tensor:
    """gelu(x w1ᵀ + b1)."""
    batch, tokens, channels = x.shape
    hidden, rows = w1.shape[0], batch * tokens
    g = x.new_empty((batch, tokens, hidden))
    unit = row_unit(x.dtype, channels, hidden)
    arguments = (x, w1, b1, g, rows, channels // unit, hidden // unit)

    def options(config: ProductConfig) -> dict:
        return projection.tiles(config, x.dtype, unit, channels)

    candidates = product_configs.product_config(channels, hidden, x.dtype, precision(x.dtype))
    with device_of(x):
        config = fitting(lambda _: hidden_kernel, candidates, arguments, options)
        hidden_kernel[projection.grid(config, rows, hidden)](*arguments, **options(config))
    return g


def backward(inputs: MlpArguments, grad_out: Tensor, grads: MlpGradients) -> None:
    """Write the gradients of x, the weights and the biases; sums are taken in a fixed order, never by atomics."""
    x, w1, b1, w2, _, sample_scale, residual = inputs
    batch, tokens, channels = x.shape
    (out_channels, hidden), dtype = w2.shape, x.dtype
    if not is_readable(dtype, channels, hidden, out_channels):
        c, h, o = (filled_size(size, dtype) for size in (channels, hidden, out_channels))
        weights = (filled(w1, h, c), filled(b1, h), filled(w2, o, h))
        shapes = ((batch, tokens, c), (h, c), (h,), (o, h), (o,))
        wide = MlpGradients(*(grad.new_empty(shape) for grad, shape in zip(grads, shapes, strict=True)))
        wide_inputs = MlpArguments(filled(x, c), *weights, None, sample_scale, residual)
        backward(wide_inputs, filled(grad_out, o), wide)
        for grad, wide_grad in zip(grads, wide, strict=True):
            grad.copy_(wide_grad[tuple(map(slice, grad.shape))])
        return
    grad_out, x, grad_x = (t.flatten(0, 1) for t in (grad_out, x, grads.x))
    tensors = (grad_out, x, w1, b1, w2, row_scale(sample_scale, tokens))
    if configs.on_chip(w1.shape[1], w2.shape[0], w1.dtype):
        _backward_input(*tensors, residual, grad_x, grads.b2)
        _backward_weight(*tensors, grads.w1, grads.b1, grads.w2)
        return
    g, dh = _hidden_gradient(*tensors, grads.b1)
    if residual:
        torch.addmm(grad_out, dh, w1, out=grad_x)
    else:
        torch.mm(dh, w1, out=grad_x)
    torch.mm(dh.t(), x, out=grads.w1)
    torch.mm(grad_out.t(), g, out=grads.w2)
    projection.bias_gradient(grad_out.unflatten(0, (-1, tokens)), sample_scale, grad_bias=grads.b2)


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
    rows, channels = x.shape
    inputs = (grad_out, x, w1, b1, w2, scale, grad_x)

    def options(config: ChipConfig) -> dict:
        return {"RESIDUAL": residual, **tiles(config, w1, w2)}

    candidates = configs.input_config(channels, w2.shape[0], x.dtype, precision(x.dtype))
    with device_of(x):
        # To the compiler the bias is as good as the partial sums, whose number is that of the tiles; so below.
        config = fitting(lambda _: backward_input_kernel, candidates, (*inputs, b1, rows), options)
        programs = triton.cdiv(rows, config.block_t)
        partial_b2 = b1.new_empty((programs, w2.shape[0]))
        backward_input_kernel[(programs,)](*inputs, partial_b2, rows, **options(config))
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
    inputs = (grad_out, x, w1, b1, w2, scale)
    sizes = (w1.numel(), w2.numel(), hidden)

    def options(config: ChipConfig) -> dict:
        return tiles(config, w1, w2)

    candidates = configs.weight_config(channels, w2.shape[0], x.dtype, precision(x.dtype))
    with device_of(x):
        config = fitting(lambda _: backward_weight_kernel, candidates, (*inputs, b1, rows, 1), options)
        parts = configs.num_parts(rows, hidden, config)
        partial = b1.new_empty((parts, sum(sizes)))
        programs = parts * triton.cdiv(hidden, config.block_h)
        backward_weight_kernel[(programs,)](*inputs, partial, rows, parts, **options(config))
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
    unit = row_unit(x.dtype, channels, hidden, out_channels)
    g, dh = x.new_empty((2, rows, hidden))
    inputs = (grad_out, x, w1, b1, w2, scale, g, dh)
    sizes = (rows, channels // unit, hidden // unit, out_channels // unit)

    def options(config: ProductConfig) -> dict:
        return projection.tiles(config, x.dtype, unit, channels, out_channels)

    candidates = configs.gradient_config(channels, out_channels, x.dtype, precision(x.dtype))
    with device_of(x):
        config = fitting(lambda _: hidden_gradient_kernel, candidates, (*inputs, b1, *sizes), options)
        partial_b1 = b1.new_empty((triton.cdiv(rows, config.block_m), hidden))
        hidden_gradient_kernel[projection.grid(config, rows, hidden)](*inputs, partial_b1, *sizes, **options(config))
    torch.sum(partial_b1, dim=0, out=grad_b1)
    return g, dh
