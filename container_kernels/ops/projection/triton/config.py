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

    A tile of 128 rows reads the weights, which lie in L2, once for 128 tokens; wider tiles read x again less often, but
    where out_channels fills them badly the padding is multiplied too. float32 products without tensor cores take all
    operands through registers, and rows that no 16-byte load fits need more addresses: their tiles are smaller.
    """
    if dtype == torch.float32:
        return ProductConfig(64, 64, 16, 8, 2)
    block_k = min(64, padded(channels))
    if channels % 8 or out_channels % 8:
        return ProductConfig(64, 32, block_k, 4, 2)
    block_n = min(128, padded(out_channels))
    while block_n > 64 and out_channels % block_n:
        block_n //= 2
    return ProductConfig(128, block_n, block_k, 4 if block_n <= 64 else 8, 3)
