# SPDX-License-Identifier: MIT
"""The Triton backend of the mix: launches. The math is in forward.py, backward_row.py and backward_tiled.py."""

import math

import torch
import triton
from torch import Tensor

from ...triton_device import current_gpu
from ...triton_primitives import device_of, precision, tap_major
from . import config as configs
from .backward_row import backward_row_kernel
from .backward_tiled import backward_key_kernel, backward_query_kernel
from .config import BackwardConfig, ForwardConfig, MixConfig
from .forward import forward_row_kernel, forward_tiled_kernel

LOG2E = 1 / math.log(2)

__all__ = ["BackwardConfig", "ForwardConfig", "MixConfig", "backward", "forward"]


def address_unit(*tensors: Tensor) -> int:
    """Elements, up to 16 bytes, that the addresses of all tokens in these (B, N, M, D) tensors are multiples of."""
    return math.gcd(
        16 // tensors[0].element_size(),
        *(
            stride
            for tensor in tensors
            for size, stride in zip(tensor.shape[:3], tensor.stride(), strict=False)
            if size > 1
        ),
    )


def strides(tensor: Tensor, unit: int) -> tuple[int, int, int]:
    """(B, N, M) strides of a (B, N, M, D) tensor in units; those of one element alone are never followed."""
    return tuple(stride // unit for stride in tensor.stride()[:3])


def window(local_weight: Tensor | None) -> tuple[Tensor | None, int, int]:
    """The taps as the kernels read them, and the window's size; (None, 0, 0) without a local term."""
    if local_weight is None:
        return None, 0, 0
    return tap_major(local_weight), local_weight.shape[1], local_weight.shape[2]


def within_reach(tensor: Tensor) -> Tensor:
    """The tensor, or a copy of it where the tokens of one tile are further apart than 32-bit offsets reach."""
    return tensor if tensor.stride(1) * configs.MAX_TOKENS_PER_TILE < 2**31 else tensor.contiguous()


def tiles(config: MixConfig, dtype: torch.dtype, head_dim: int, unit: int) -> dict:
    """The constexpr and launch arguments that every kernel takes."""
    return {
        "PRECISION": precision(dtype),
        "UNIT": unit,
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
    q, k, v = (within_reach(tensor) for tensor in (q, k, v))
    unit = address_unit(q, k, v)
    taps, kernel_h, kernel_w = window(local_weight)
    with device_of(q):
        config = config or configs.forward_config(n, head_dim, unit, q.dtype, current_gpu())
        kernel = forward_row_kernel if config.whole_row else forward_tiled_kernel
        kernel[(batch * num_heads * triton.cdiv(n, config.block_m),)](
            q,
            k,
            v,
            alpha,
            taps,
            local_bias,
            affinity,
            out,
            logsumexp,
            strides(q, unit),
            strides(k, unit),
            strides(v, unit),
            n,
            num_heads,
            height,
            width,
            # Never 0, which times the -inf of an absent key would be NaN.
            max(abs(scale) * LOG2E, torch.finfo(torch.float32).tiny),
            KERNEL_H=kernel_h,
            KERNEL_W=kernel_w,
            NEGATIVE=scale < 0,
            **tiles(config, q.dtype, head_dim, unit),
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
    grad_out, q, k, v = (within_reach(tensor) for tensor in (grad_out, q, k, v))
    unit = address_unit(grad_out, q, k, v, grad_q)
    taps, kernel_h, kernel_w = window(local_weight)
    inputs = (grad_out, q, k, v, alpha)
    all_strides = tuple(strides(tensor, unit) for tensor in (grad_out, q, k, v, grad_q))
    local = {"KERNEL_H": kernel_h, "KERNEL_W": kernel_w}
    heads = batch * num_heads
    with device_of(q):
        config = config or configs.backward_config(n, head_dim, unit, q.dtype, current_gpu())
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
                **tiles(config.row, q.dtype, head_dim, unit),
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
            **tiles(config.query, q.dtype, head_dim, unit),
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
            **tiles(config.key, q.dtype, head_dim, unit),
        )
        torch.sum(delta, dim=(0, 2), out=grad_alpha)
