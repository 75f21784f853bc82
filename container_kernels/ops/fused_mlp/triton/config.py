# SPDX-License-Identifier: MIT
"""Which kernels run and their tile shapes, as pure functions of the problem: the same choice every run."""

from dataclasses import dataclass

import torch

from ...projection.triton.config import ProductConfig, padded

# Programs that fill an H100 twice; each weight gradient program writes partial sums of its own.
WANTED_PROGRAMS = 264


@dataclass(frozen=True)
class ChipConfig:
    """One launch of a kernel that keeps the hidden layer on chip: block_t tokens by block_h hidden units."""

    block_t: int
    block_h: int
    num_warps: int
    num_stages: int


FORWARD_16 = {64: (128, 64, 4, 2), 128: (128, 64, 8, 2)}
INPUT_16 = {64: (128, 64, 8, 2), 128: (128, 64, 8, 2)}
WEIGHT_16 = {64: (64, 64, 8, 2), 128: (64, 64, 8, 2)}
FORWARD_32 = {64: (32, 32, 8, 1), 128: (32, 32, 8, 1)}
INPUT_32 = {64: (32, 32, 8, 1), 128: (32, 32, 8, 1)}
WEIGHT_32 = {64: (32, 32, 8, 1), 128: (32, 32, 8, 1)}


def on_chip(channels: int, out_channels: int) -> bool:
    return max(channels, out_channels) <= 128


def _tiled(table: dict, channels: int, out_channels: int) -> ChipConfig:
    return ChipConfig(*table[max(64, padded(channels), padded(out_channels))])


def forward_config(channels: int, out_channels: int, dtype: torch.dtype) -> ChipConfig:
    return _tiled(FORWARD_32 if dtype == torch.float32 else FORWARD_16, channels, out_channels)


def input_config(channels: int, out_channels: int, dtype: torch.dtype) -> ChipConfig:
    return _tiled(INPUT_32 if dtype == torch.float32 else INPUT_16, channels, out_channels)


def weight_config(channels: int, out_channels: int, dtype: torch.dtype) -> ChipConfig:
    return _tiled(WEIGHT_32 if dtype == torch.float32 else WEIGHT_16, channels, out_channels)


def num_parts(rows: int, hidden: int, config: ChipConfig) -> int:
    """Into how many parts the tokens are split for the weights' gradients."""
    hidden_tiles = -(-hidden // config.block_h)
    return max(1, min(-(-rows // config.block_t), WANTED_PROGRAMS // hidden_tiles))


def gradient_config(channels: int, hidden: int, dtype: torch.dtype) -> ProductConfig:
    """Launch parameters of the kernel that computes two products of the hidden layer's shape at once."""
    if dtype == torch.float32:
        return ProductConfig(64, 64, min(32, padded(channels)), 8, 2)
    return ProductConfig(128, 128, 64, 8, 3)
