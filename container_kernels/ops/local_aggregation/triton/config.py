# SPDX-License-Identifier: MIT
"""Tile shapes and launch parameters, as pure functions of the problem: the same choice every run."""

from dataclasses import dataclass

# Enough programs for the 108 (A100) to 148 (B200) multiprocessors to hold four each; more only adds seams.
WANTED_PROGRAMS = 512


@dataclass(frozen=True)
class DepthwiseConfig:
    """One launch: tiles of `columns` by `channels`; `split` is rows of a strip (forward) or number of parts."""

    columns: int
    channels: int
    num_warps: int
    split: int


def tile(num_channels: int, taps: int) -> tuple[int, int, int]:
    """(columns, channels, num_warps): two channels a thread.

    A 7×7 window keeps some 175 registers a thread; with 4 warps ptxas spills to fit a third block, with 8 it does not.
    """
    num_warps = 8 if taps > 25 else 4
    channels = min(64, max(16, 1 << (num_channels - 1).bit_length()))
    return 64 * num_warps // channels, channels, num_warps


def forward_config(images: int, height: int, width: int, num_channels: int, taps: int) -> DepthwiseConfig:
    """Whole columns when they make enough programs, else strips of at least 14 rows.

    Every strip reads and multiplies kh - 1 rows beyond its own: 14 rows keep that under a third for a 5×5 window.
    """
    columns, channels, num_warps = tile(num_channels, taps)
    programs = -(-images * width // columns) * -(-num_channels // channels)
    strips = -(-WANTED_PROGRAMS // programs)
    return DepthwiseConfig(columns, channels, num_warps, max(14, -(-height // strips)))


def backward_config(images: int, width: int, num_channels: int, taps: int) -> DepthwiseConfig:
    """As many parts as fill the device once; each costs one reduction across its warps and one row of partial sums."""
    columns, channels, num_warps = tile(num_channels, taps)
    blocks = -(-images * width // columns)
    parts = max(1, WANTED_PROGRAMS // -(-num_channels // channels))
    return DepthwiseConfig(columns, channels, num_warps, min(blocks, parts))
