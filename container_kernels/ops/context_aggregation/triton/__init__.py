# SPDX-License-Identifier: MIT
"""The Triton backend of the mix: launches. The math is in forward.py, backward_row.py and backward_tiled.py."""

import torch
import triton
from torch import Tensor

from ...triton_primitives import device_of, precision, tap_major
from . import config as configs
from .backward_row import backward_row_kernel
from .backward_tiled import backward_key_kernel, backward_query_kernel
from .config import BackwardConfig, ForwardConfig, MixConfig
from .forward import forward_row_kernel, forward_tiled_kernel

__all__ = ["BackwardConfig", "ForwardConfig", "MixConfig", "backward", "forward"]


def strides(tensor: Tensor) -> tuple[int, int, int]:
    """(B, N, M) strides of a (B, N, M, D) tensor; the last dimension is contiguous."""
    return tensor.stride()[:3]


def window(local_weight: Tensor | None) -> tuple[Tensor | None, int, int]:
    """The taps as the kernels read them, and the window's size; (None, 0, 0) without a local term."""
    if local_weight is None:
        return None, 0, 0
    return tap_major(local_weight), local_weight.shape[1], local_weight.shape[2]


def tiles(config: MixConfig, dtype: torch.dtype, head_dim: int) -> dict:
    """The constexpr and launch arguments that every kernel takes."""
    return {
        "PRECISION": precision(dtype),
        "HEAD_DIM": head_dim,
        "BLOCK_D": configs.padded(head_dim),
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "num_warps": config.num_warps,
        "num_stages": config.num_stages,
        "enable_fp_fusion": True,  # Triton 3.10 changes the default
    }


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    alpha: Tensor,
    local_weight: Tensor | None,
    local_bias: Tensor | None,
    affinity: Tensor | None,
    height: int,
    width: int,
    scale: float,
    *,
    out: Tensor,
    logsumexp: Tensor,
    config: ForwardConfig | None = None,
) -> None:
    """Write the mix to `out`, the natural log of the softmax sums to `logsumexp`; `config` overrides the tiles."""
    batch, n, num_heads, head_dim = q.shape
    config = config or configs.forward_config(n, head_dim, q.dtype)
    kernel = forward_row_kernel if config.whole_row else forward_tiled_kernel
    taps, kernel_h, kernel_w = window(local_weight)
    grid = (batch * num_heads * triton.cdiv(n, config.block_m),)
    with device_of(q):
        kernel[grid](
            q,
            k,
            v,
            alpha,
            taps,
            local_bias,
            affinity,
            out,
            logsumexp,
            strides(q),
            strides(k),
            strides(v),
            n,
            num_heads,
            height,
            width,
            scale,
            KERNEL_H=kernel_h,
            KERNEL_W=kernel_w,
            **tiles(config, q.dtype, head_dim),
        )


def backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    alpha: Tensor,
    local_weight: Tensor | None,
    affinity: Tensor | None,
    logsumexp: Tensor,
    height: int,
    width: int,
    scale: float,
    *,
    grad_q: Tensor,
    grad_k: Tensor,
    grad_v: Tensor,
    grad_alpha: Tensor,
    config: BackwardConfig | None = None,
) -> None:
    """Write the gradients of q, k, v (which share their strides) and alpha.

    Sums are taken in a fixed order, never by atomics.
    """
    batch, n, num_heads, head_dim = q.shape
    config = config or configs.backward_config(n, head_dim, q.dtype)
    taps, kernel_h, kernel_w = window(local_weight)
    inputs = (grad_out, q, k, v, alpha)
    all_strides = (strides(grad_out), strides(q), strides(k), strides(v), strides(grad_q))
    local = {"KERNEL_H": kernel_h, "KERNEL_W": kernel_w}
    heads = batch * num_heads
    with device_of(q):
        if config.row is not None:
            shares = torch.empty((batch, num_heads), dtype=logsumexp.dtype, device=q.device)
            backward_row_kernel[(heads,)](
                *inputs,
                taps,
                affinity,
                logsumexp,
                grad_q,
                grad_k,
                grad_v,
                shares,
                *all_strides,
                n,
                num_heads,
                height,
                width,
                scale,
                **local,
                **tiles(config.row, q.dtype, head_dim),
            )
            torch.sum(shares, dim=0, out=grad_alpha)
            return
        delta = torch.empty_like(logsumexp)
        backward_query_kernel[(heads * triton.cdiv(n, config.query.block_m),)](
            *inputs,
            logsumexp,
            grad_q,
            delta,
            *all_strides,
            n,
            num_heads,
            scale,
            **tiles(config.query, q.dtype, head_dim),
        )
        backward_key_kernel[(heads * triton.cdiv(n, config.key.block_n),)](
            *inputs,
            taps,
            affinity,
            logsumexp,
            delta,
            grad_k,
            grad_v,
            *all_strides,
            n,
            num_heads,
            height,
            width,
            scale,
            **local,
            **tiles(config.key, q.dtype, head_dim),
        )
        torch.sum(delta, dim=(0, 2), out=grad_alpha)
