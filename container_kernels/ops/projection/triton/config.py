# SPDX-License-Identifier: MIT
"""Tile shapes and launch parameters of a product, as a pure function of the problem: the same choice every run."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class ProductConfig:
    """One launch: a program computes block_m rows by block_n columns, block_k of the depth at a time."""

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int


def padded(size: int) -> int:
    """The power of two that holds `size` and that a tensor core accepts."""
    return max(16, 1 << (size - 1).bit_length())


def product_config(channels: int, out_channels: int, dtype: torch.dtype) -> ProductConfig:
    """Launch parameters for rows × channels by channels × out_channels.

    - A tile of 128 rows reads the weights, which lie in L2, once for 128 tokens. A tile of 128 columns reads x half as
      often as one of 64, which pays for a quarter of columns that are padding (as of 320), not for more.
    - A depth of one or two steps is bound by memory: no buffers for more steps than there are, and tiles of few
      registers, so that more of them load at a time.
    - float32 products without tensor cores take all operands through registers, and rows of which Triton does not know
      that 16-byte loads fit (it does for multiples of 16) need more addresses: their tiles are smaller.
    """
    if dtype == torch.float32:
        return ProductConfig(64, 64, 16, 8, 2)
    block_k = min(64, padded(channels))
    if channels % 16 or out_channels % 16:
        return ProductConfig(64, 32, block_k, 4, 2)
    block_n = min(128, padded(out_channels))
    if block_n == 128 and -(-out_channels // 128) * 128 > 1.25 * out_channels:
        block_n = 64
    steps = -(-channels // block_k)
    if block_n <= 64:
        return ProductConfig(128, block_n, block_k, 8 if steps == 1 else 4, min(steps, 3))
    if steps <= 2:
        return ProductConfig(64, block_n, block_k, 4, steps)
    return ProductConfig(128, block_n, block_k, 8, 3)
