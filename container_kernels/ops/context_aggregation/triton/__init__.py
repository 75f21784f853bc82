# SPDX-License-Identifier: MIT
"""The Triton backend of the mix: launches. The math is in forward.py and backward_*.py."""

import math
from collections.abc import Callable

import torch
import triton
from torch import Tensor
from triton import JITFunction

from ...common.triton_fitting import fitting
from ...common.triton_primitives import device_of, precision, tap_major
from ..inputs import MixArguments, MixGradients
from . import config as configs
from .alignment import readable, spare_channels, widen, with_spare_channels
from .backward_key import backward_key_kernel
from .backward_query import backward_query_kernel
from .backward_row import backward_row_kernel
from .config import BackwardConfig, ForwardConfig, MixConfig
from .forward import forward_row_kernel, forward_tiled_kernel

LOG2E = 1 / math.log(2)

__all__ = ["BackwardConfig", "ForwardConfig", "MixConfig", "backward", "forward"]


def strides(tensor: Tensor) -> tuple[int, int, int]:
    """(B, N, M) strides of a (B, N, M, D) tensor in units of 16 bytes; the last dimension is contiguous."""
    unit = 16 // tensor.element_size()
    return tuple(stride // unit for stride in tensor.stride()[:3])


def window(local_weight: Tensor | None) -> tuple[Tensor | None, int, int]:
    """The taps as the kernels read them, and the window's size; (None, 0, 0) without a local term."""
    if local_weight is None:
        return None, 0, 0
    return tap_major(local_weight), local_weight.shape[1], local_weight.shape[2]


def normalizes(dtype: torch.dtype) -> bool:
    """Whether the backward divides P by its own sum, which frees it of the rounding of logsumexp.

    A large one's error is that of all P of a row. 16 bits, and TF32, hide it.
    """
    return dtype == torch.float32 and precision(dtype) == "ieee"


def tiles(config: MixConfig, dtype: torch.dtype, head_dim: int) -> dict:
    """The constexpr and launch arguments that every kernel takes."""
    return {
        "PRECISION": precision(dtype),
        "UNIT": 16 // dtype.itemsize,
        "HEAD_DIM": head_dim,
        "BLOCK_D": configs.padded(head_dim),
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "TAIL": config.tail,
        "num_warps": config.num_warps,
        "num_stages": config.num_stages,
        "enable_fp_fusion": True,  # Triton 3.10 changes the default
    }


def launch(
    candidates: tuple[MixConfig, ...],
    kernel_of: Callable[[MixConfig], JITFunction],
    programs: Callable[[MixConfig], int],
    head_dim: int,
    arguments: tuple,
    constants: dict,
) -> None:
    """Launch the kernel of the first candidate that fits the current device; all take the same arguments."""
    dtype = arguments[0].dtype

    def options(config: MixConfig) -> dict:
        return constants | tiles(config, dtype, head_dim)

    config = fitting(kernel_of, candidates, arguments, options)
    kernel_of(config)[(programs(config),)](*arguments, **options(config))


def forward(inputs: MixArguments, out: Tensor, logsumexp: Tensor) -> None:
    """Write the mix to `out` (B, N, M, D), dtype of v, the log2 of the softmax sums to `logsumexp` (B, M, N)."""
    batch, n, num_heads, head_dim = inputs.v.shape
    if spare := spare_channels(inputs.v):
        wide = inputs.v.new_empty((batch, n, num_heads, head_dim + spare))
        forward(with_spare_channels(inputs, spare), wide, logsumexp)
        out.copy_(wide[..., :head_dim])
        return
    q, k, v = (readable(tensor) for tensor in inputs[:3])
    taps, kernel_h, kernel_w = window(inputs.local_weight)
    arguments = (q, k, v, inputs.alpha, taps, inputs.local_bias, inputs.affinity, out, logsumexp)
    # The queries have the sign. Positive also where the scale is 0 or rounds to it: 0 times the -inf of an absent key
    # would be NaN.
    sign = (inputs.scale > 0) - (inputs.scale < 0)
    scale_log2 = max(abs(inputs.scale) * LOG2E, torch.finfo(torch.float32).tiny)
    arguments += (strides(q), strides(k), strides(v), n, num_heads, inputs.height, inputs.width, scale_log2)
    constants = {"KERNEL_H": kernel_h, "KERNEL_W": kernel_w, "SIGN": sign}
    candidates = configs.forward_config(n, head_dim, q.dtype, precision(q.dtype))
    with device_of(q):
        launch(
            candidates,
            lambda config: forward_row_kernel if config.whole_row else forward_tiled_kernel,
            lambda config: batch * num_heads * triton.cdiv(n, config.block_m),
            head_dim,
            arguments,
            constants,
        )


def backward(inputs: MixArguments, grad_out: Tensor, logsumexp: Tensor, grads: MixGradients) -> None:
    """Write the gradients of q, k, v and alpha. Sums are taken in a fixed order, never by atomics.

    Args:
        grad_out: (B, N, M, D), dtype of q, any strides with a contiguous last dimension.
        logsumexp: (B, M, N), as `forward` wrote it.
    """
    batch, n, num_heads, head_dim = inputs.v.shape
    if spare := spare_channels(inputs.v):
        wide = inputs.v.new_empty((3, batch, n, num_heads, head_dim + spare))
        wide_grads = MixGradients(*wide, grads.alpha)
        backward(with_spare_channels(inputs, spare), widen(grad_out, num_heads, spare), logsumexp, wide_grads)
        for grad, wide_grad in zip(grads[:3], wide, strict=True):
            grad.copy_(wide_grad[..., :head_dim])
        return
    grad_out, q, k, v = (readable(tensor) for tensor in (grad_out, *inputs[:3]))
    taps, kernel_h, kernel_w = window(inputs.local_weight)
    tensors = (grad_out, q, k, v, inputs.alpha)
    all_strides = tuple(strides(tensor) for tensor in (grad_out, q, k, v, grads.q))
    scale_log2 = inputs.scale * LOG2E
    grid = (n, num_heads, inputs.height, inputs.width, scale_log2)
    local = {"KERNEL_H": kernel_h, "KERNEL_W": kernel_w}
    heads = batch * num_heads
    config = configs.backward_config(n, head_dim, q.dtype, precision(q.dtype))
    with device_of(q):
        if config.row:
            shares = torch.empty((batch, num_heads), dtype=logsumexp.dtype, device=q.device)
            outputs = (*grads[:3], shares)
            arguments = (*tensors, taps, inputs.affinity, logsumexp, *outputs, *all_strides, *grid)
            constants = {**local, "NORMALIZE": normalizes(q.dtype)}
            launch(config.row, lambda _: backward_row_kernel, lambda _: heads, head_dim, arguments, constants)
            torch.sum(shares, dim=0, out=grads.alpha)
            return
        delta = torch.empty_like(logsumexp)
        inverse_sum = torch.empty_like(logsumexp) if normalizes(q.dtype) else None
        launch(
            config.query,
            lambda _: backward_query_kernel,
            lambda config: heads * triton.cdiv(n, config.block_m),
            head_dim,
            (*tensors, logsumexp, grads.q, delta, inverse_sum, *all_strides, n, num_heads, scale_log2),
            {},
        )
        launch(
            config.key,
            lambda _: backward_key_kernel,
            lambda config: heads * triton.cdiv(n, config.block_n),
            head_dim,
            (*tensors, taps, inputs.affinity, logsumexp, delta, inverse_sum, grads.k, grads.v, *all_strides, *grid),
            local,
        )
        torch.sum(delta, dim=(0, 2), out=grads.alpha)
