# SPDX-License-Identifier: MIT
"""Tile shapes and launch parameters of a product, as a pure function of the problem, best first.

`ops/common/triton_fitting.py` takes the first that the GPU holds without spilling. Speed is not measured yet.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch

from ...common.triton_tiles import kind, padded

# Columns that exist in no matrix, as a part of those that do: what a tile of 128 columns may pad.
MAX_WASTE = 0.1


@dataclass(frozen=True)
class ProductConfig:
    """One launch: a program computes block_m rows by block_n columns, block_k of the depth at a time."""

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int


def columns_per_tile(columns: int) -> int:
    """128, or 64 where that pads less and 128 more than MAX_WASTE; narrow matrices fit one tile."""
    over = {block: -(-columns // block) * block / columns - 1 for block in (64, 128)}
    wide = over[128] <= max(MAX_WASTE, over[64])
    return min(128 if wide else 64, padded(columns))


@lru_cache(maxsize=1024)
def product_config(channels: int, out_channels: int, dtype: torch.dtype, precision: str) -> tuple[ProductConfig, ...]:
    """Launch parameters for rows × channels by channels × out_channels, best first.

    - A tile of 128 rows reads the weights, which lie in L2, once for 128 tokens; 128 columns read x half as often as
      64. Tiles of 64 columns, where 128 would be padding in part, have 256 rows instead.
    - A depth of one or two steps is bound by memory: no buffers for more steps than there are, and tiles of few
      registers, so that more of them load at a time.
    - float32 takes twice the bytes per step. Without tensor cores all operands pass through registers: small tiles.
    """
    how = kind(dtype, precision)
    if how == "ieee":
        tiles = ((64, 64, 16, 8, 2), (64, 32, 16, 4, 2), (32, 32, 16, 4, 2), (16, 16, 16, 4, 1))
        return tuple(ProductConfig(*tile) for tile in tiles)
    block_n = columns_per_tile(out_channels)
    block_k = min({"half": 64, "tf32": 32}[how], padded(channels))
    steps = -(-channels // block_k)
    if steps <= 2:
        num_warps = 8 if steps == 1 and block_n == 64 else 4
        first = (64 if block_n == 128 else 128, block_n, block_k, num_warps, steps)
        tiles = (first, (64, 64, block_k, 4, 2))
    elif block_n == 128:
        tiles = ((128, 128, block_k, 8, 3), (128, 64, block_k, 4, 3))
    else:
        tiles = ((256, block_n, block_k, 8, 3), (128, block_n, block_k, 4, 3))
    tiles += ((64, 32, min(32, block_k), 4, 2), (32, 32, 16, 4, 1))
    return tuple(ProductConfig(*tile) for tile in tiles)
