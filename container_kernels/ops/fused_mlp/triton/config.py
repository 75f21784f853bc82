# SPDX-License-Identifier: MIT
"""Choice of kernels and tile shapes, as pure functions of the problem, best first. `ops/common/triton_fitting.py` takes
the first that the GPU holds without spilling. Speed is not measured yet.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch

from ...common.triton_tiles import kind, padded
from ...projection.triton.config import ProductConfig

# The most channels, in and out, with which the hidden layer stays on chip: `on_chip` says why.
MAX_CHANNELS_ON_CHIP = {torch.bfloat16: 128, torch.float16: 128, torch.float32: 64}
# Two for each of an H100's 132 multiprocessors, all resident at once; each writes partial sums of its own.
WANTED_PROGRAMS = 264


@dataclass(frozen=True)
class ChipConfig:
    """One launch of a kernel that keeps the hidden layer on chip: block_t tokens by block_h hidden units."""

    block_t: int
    block_h: int
    num_warps: int
    num_stages: int


# Candidates, best first, by padded channels (32 stands for 16 too). A warp needs 16 rows of a product's left operand:
# with fewer, warps repeat each other's work. Two blocks on a multiprocessor, so that one's GELU runs beside the other's
# products, come before more tokens a block, which would read the weights less often from L2. float32 takes twice the
# registers for operands, and without tensor cores ("ieee") all of them pass through registers: small tiles.
FORWARD = {
    "half": {
        32: ((128, 64, 8, 2), (64, 64, 4, 2), (64, 32, 4, 2), (64, 32, 4, 1)),
        64: ((128, 64, 8, 2), (64, 64, 4, 2), (64, 32, 4, 2), (64, 32, 4, 1)),
        128: ((128, 64, 8, 2), (128, 32, 8, 2), (64, 32, 4, 2), (64, 16, 4, 2), (64, 16, 4, 1)),
    },
    "tf32": {
        32: ((128, 32, 8, 2), (64, 32, 4, 2), (64, 16, 4, 2), (64, 16, 4, 1)),
        64: ((128, 32, 8, 2), (64, 32, 4, 2), (64, 16, 4, 2), (64, 16, 4, 1)),
    },
    "ieee": {
        32: ((64, 32, 8, 2), (64, 16, 8, 2), (32, 16, 4, 2), (16, 16, 4, 1)),
        64: ((64, 32, 8, 2), (64, 16, 8, 2), (32, 16, 4, 2), (16, 16, 4, 1)),
    },
}
INPUT = {
    "half": {
        32: ((64, 64, 4, 2), (64, 32, 4, 2), (64, 32, 4, 1)),
        64: ((64, 64, 4, 2), (64, 32, 4, 2), (64, 32, 4, 1)),
        128: ((64, 64, 4, 2), (64, 32, 4, 2), (64, 16, 4, 2), (64, 16, 4, 1)),
    },
    "tf32": {
        32: ((64, 32, 4, 2), (64, 16, 4, 2), (64, 16, 4, 1), (32, 16, 4, 1)),
        64: ((64, 32, 4, 2), (64, 16, 4, 2), (128, 16, 8, 2), (32, 16, 4, 2), (32, 16, 4, 1)),
    },
    "ieee": {
        32: ((64, 32, 8, 2), (64, 16, 8, 2), (32, 16, 4, 2), (16, 16, 4, 1)),
        64: ((64, 32, 8, 2), (64, 16, 8, 2), (32, 16, 4, 2), (16, 16, 4, 1)),
    },
}
WEIGHT = {
    "half": {
        32: ((64, 64, 4, 2), (32, 64, 4, 2), (32, 32, 4, 2), (16, 32, 4, 1)),
        64: ((64, 64, 4, 2), (32, 64, 4, 2), (32, 32, 4, 2), (16, 32, 4, 1)),
        128: ((32, 64, 4, 2), (32, 64, 8, 2), (32, 32, 4, 2), (16, 32, 4, 2), (16, 32, 4, 1)),
    },
    "tf32": {
        32: ((32, 64, 4, 2), (16, 64, 4, 2), (16, 32, 4, 2), (16, 16, 4, 1)),
        64: ((32, 64, 4, 2), (16, 64, 4, 2), (16, 32, 4, 2), (16, 16, 4, 1)),
    },
    "ieee": {
        32: ((16, 64, 4, 2), (16, 32, 4, 2), (16, 16, 4, 2), (16, 16, 4, 1)),
        64: ((16, 32, 4, 2), (16, 16, 4, 2), (16, 32, 8, 2), (16, 16, 4, 1)),
    },
}


def on_chip(channels: int, out_channels: int, dtype: torch.dtype) -> bool:
    """Whether the hidden layer stays on chip; else its products write it, with activation and gradient as epilogues.

    For each token and hidden unit, forward and backward, in 16 bits:

        on chip     2 + 7 products, 18 C FLOPs
        in memory   2 + 5 products, 14 C FLOPs, 14 bytes: g written, read; g, dh written, g read once, dh twice

    At 500 TFLOP/s for tiles on chip, 700 for large products and 3 TB/s that is 36 C fs against 20 C fs + 4.7 ps: on
    chip wins below C of about 290 (predicted). Long before, the accumulators of the weights' gradients, 2 · C by a tile
    of 64 units, no longer fit the registers: 128 channels is what does, 64 in float32. Channels that pad badly lose up
    to half of the multiplications and still win by bytes.
    """
    return max(channels, out_channels) <= MAX_CHANNELS_ON_CHIP[dtype]


@lru_cache(maxsize=1024)
def forward_config(channels: int, out_channels: int, dtype: torch.dtype, precision: str) -> tuple[ChipConfig, ...]:
    """Launch parameters of the forward, best first."""
    return _tiled(FORWARD, channels, out_channels, dtype, precision)


@lru_cache(maxsize=1024)
def input_config(channels: int, out_channels: int, dtype: torch.dtype, precision: str) -> tuple[ChipConfig, ...]:
    """Launch parameters of the gradient of x, best first."""
    return _tiled(INPUT, channels, out_channels, dtype, precision)


@lru_cache(maxsize=1024)
def weight_config(channels: int, out_channels: int, dtype: torch.dtype, precision: str) -> tuple[ChipConfig, ...]:
    """Launch parameters of the gradients of the weights, best first."""
    return _tiled(WEIGHT, channels, out_channels, dtype, precision)


def num_parts(rows: int, hidden: int, config: ChipConfig) -> int:
    """Into how many parts the tokens are split for the weights' gradients."""
    hidden_tiles = -(-hidden // config.block_h)
    return max(1, min(-(-rows // config.block_t), WANTED_PROGRAMS // hidden_tiles))


@lru_cache(maxsize=1024)
def gradient_config(channels: int, out_channels: int, dtype: torch.dtype, precision: str) -> tuple[ProductConfig, ...]:
    """Launch parameters, best first, of the kernel that computes two products of the hidden layer's shape and holds
    both at its end."""
    tiles = {
        "half": ((128, 128, 64, 8, 3), (128, 64, 64, 8, 3), (64, 64, 32, 4, 2), (64, 32, 32, 4, 2), (32, 32, 16, 4, 1)),
        "tf32": ((128, 64, 32, 8, 3), (64, 64, 32, 8, 2), (64, 32, 16, 4, 2), (32, 32, 16, 4, 1)),
        "ieee": ((64, 64, 16, 8, 2), (64, 32, 16, 8, 2), (32, 32, 16, 4, 2), (16, 16, 16, 4, 1)),
    }
    return tuple(ProductConfig(*tile) for tile in tiles[kind(dtype, precision)])


def _tiled(table: dict, channels: int, out_channels: int, dtype: torch.dtype, precision: str) -> tuple[ChipConfig, ...]:
    candidates = table[kind(dtype, precision)][max(32, padded(channels), padded(out_channels))]
    return tuple(ChipConfig(*tile) for tile in candidates)
