# SPDX-License-Identifier: MIT
"""Tile shapes and launch parameters, as pure functions of the problem, best first. `ops/common/triton_fitting.py` takes
the first that the GPU holds without spilling.
"""

from dataclasses import dataclass

# Enough programs for the 108 (A100) to 148 (B200) multiprocessors to hold four each; more only adds seams.
WANTED_PROGRAMS = 512


@dataclass(frozen=True)
class LocalConfig:
    """One launch: tiles of `columns` by `channels`; `split` is rows of a strip (forward) or number of parts."""

    columns: int
    channels: int
    num_warps: int
    split: int


def is_wide(kernel_h: int, kernel_w: int) -> bool:
    """Whether the taps of a thread's channels are more than its registers hold beside the sums."""
    return max(kernel_h, kernel_w) > 7


def tiles(num_channels: int, taps: int) -> list[tuple[int, int, int]]:
    """(columns, channels, num_warps) of candidates, best first: two channels a thread, at last one.

    A 7×7 window keeps some 175 registers a thread; with 4 warps ptxas spills to fit a third block, with 8 it does not,
    unless channels are loaded one by one.
    """
    channels = min(64, max(16, 1 << (num_channels - 1).bit_length()))
    warps = (8, 4) if taps > 25 else (4, 8)
    candidates = [(2, num_warps) for num_warps in warps] + [(1, 4)]
    return [(per_thread * 32 * num_warps // channels, channels, num_warps) for per_thread, num_warps in candidates]


def forward_config(images: int, height: int, width: int, num_channels: int, taps: int) -> tuple[LocalConfig, ...]:
    """Whole columns when they make enough programs, else strips of at least 14 rows.

    Every strip reads and multiplies kh - 1 rows beyond its own: 14 rows keep that under a third for a 5×5 window.
    """
    configs = []
    for columns, channels, num_warps in tiles(num_channels, taps):
        programs = -(-images * width // columns) * -(-num_channels // channels)
        strips = -(-WANTED_PROGRAMS // programs)
        configs.append(LocalConfig(columns, channels, num_warps, max(14, -(-height // strips))))
    return tuple(configs)


def backward_config(images: int, width: int, num_channels: int, taps: int) -> tuple[LocalConfig, ...]:
    """As many parts as fill the device once; each costs one reduction across its warps and one row of partial sums."""
    configs = []
    for columns, channels, num_warps in tiles(num_channels, taps):
        blocks = -(-images * width // columns)
        parts = max(1, WANTED_PROGRAMS // -(-num_channels // channels))
        configs.append(LocalConfig(columns, channels, num_warps, min(blocks, parts)))
    return tuple(configs)
