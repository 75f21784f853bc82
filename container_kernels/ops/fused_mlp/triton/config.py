# SPDX-License-Identifier: MIT
"""Which kernels run and their tile shapes, as pure functions of the problem: the same choice every run.

Tiles are held to what ptxas compiles for sm_80 and sm_90 without spilling a register and within the 99 KiB of shared
memory of the smallest sm_8x (tests/test_triton_compile.py). Speed is not measured yet.
"""

from dataclasses import dataclass

import torch

from ...projection.triton.config import ProductConfig, padded

# Two for each of an H100's 132 multiprocessors, all resident at once; each writes partial sums of its own.
WANTED_PROGRAMS = 264


@dataclass(frozen=True)
class ChipConfig:
    """One launch of a kernel that keeps the hidden layer on chip: block_t tokens by block_h hidden units."""

    block_t: int
    block_h: int
    num_warps: int
    num_stages: int


# By padded channels (32 stands for 16 too). A warp needs 16 rows of a product's left operand: with fewer, warps
# repeat each other's work. Two blocks on a multiprocessor, so that one's GELU runs beside the other's products, come
# before more tokens a block, which would read the weights less often from L2.
FORWARD_16 = {32: (128, 64, 8, 2), 64: (128, 64, 8, 2), 128: (128, 64, 8, 2)}
INPUT_16 = {32: (64, 64, 4, 2), 64: (64, 64, 4, 2), 128: (64, 64, 4, 2)}
WEIGHT_16 = {32: (32, 64, 4, 2), 64: (64, 64, 4, 2), 128: (32, 64, 4, 2)}
# Without tensor cores all operands pass through registers: small tiles.
FORWARD_32 = {32: (64, 32, 8, 2), 64: (64, 32, 8, 2)}
INPUT_32 = {32: (64, 32, 8, 2), 64: (64, 32, 8, 2)}
WEIGHT_32 = {32: (16, 64, 4, 2), 64: (16, 32, 4, 2)}


def on_chip(channels: int, out_channels: int, dtype: torch.dtype) -> bool:
    """Whether the hidden layer stays on chip; else its products write it, with activation and gradient as epilogues.

    For each token and hidden unit, forward and backward, in 16 bits:

        on chip     2 + 7 products, 18 C FLOPs
        in memory   2 + 5 products, 14 C FLOPs, 14 bytes: g written, read; g, dh written, g read once, dh twice

    At 500 TFLOP/s for tiles on chip, 700 for large products and 3 TB/s that is 36 C fs against 20 C fs + 4.7 ps: on
    chip wins below C of about 290 (predicted). Long before, the accumulators of the weights' gradients, 2 · C by a tile
    of 64 units, no longer fit the registers: 128 channels is what does, 64 in float32 or where rows are not aligned to
    16 bytes. Channels that pad badly lose up to half of the multiplications and still win by bytes.
    """
    exact = dtype == torch.float32
    return max(channels, out_channels) <= (64 if exact or not _aligned(channels, out_channels) else 128)


def forward_config(channels: int, out_channels: int, dtype: torch.dtype) -> ChipConfig:
    """Launch parameters of the forward."""
    return _tiled(FORWARD_32 if dtype == torch.float32 else FORWARD_16, channels, out_channels)


def input_config(channels: int, out_channels: int, dtype: torch.dtype) -> ChipConfig:
    """Launch parameters of the gradient of x."""
    return _tiled(INPUT_32 if dtype == torch.float32 else INPUT_16, channels, out_channels)


def weight_config(channels: int, out_channels: int, dtype: torch.dtype) -> ChipConfig:
    """Launch parameters of the gradients of the weights."""
    if dtype != torch.float32 and not _aligned(channels, out_channels):
        return ChipConfig(32, 64, 4, 2)  # loads of single elements: registers go into addresses
    return _tiled(WEIGHT_32 if dtype == torch.float32 else WEIGHT_16, channels, out_channels)


def num_parts(rows: int, hidden: int, config: ChipConfig) -> int:
    """Into how many parts the tokens are split for the weights' gradients."""
    hidden_tiles = -(-hidden // config.block_h)
    return max(1, min(-(-rows // config.block_t), WANTED_PROGRAMS // hidden_tiles))


def gradient_config(channels: int, out_channels: int, dtype: torch.dtype) -> ProductConfig:
    """Launch parameters of the kernel that computes two products of the hidden layer's shape, both held at its end."""
    if dtype == torch.float32:
        return ProductConfig(64, 32 if channels % 16 or out_channels % 16 else 64, 16, 8, 2)
    if channels % 16 or out_channels % 16:
        return ProductConfig(64, 32, 32, 4, 2)
    return ProductConfig(128, 128, 64, 8, 3)


def _aligned(channels: int, out_channels: int) -> bool:
    """Whether rows of 16-bit elements start at multiples of 16 bytes."""
    return channels % 8 == 0 and out_channels % 8 == 0


def _tiled(table: dict[int, tuple[int, int, int, int]], channels: int, out_channels: int) -> ChipConfig:
    return ChipConfig(*table[max(32, padded(channels), padded(out_channels))])
