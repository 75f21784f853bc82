# SPDX-License-Identifier: MIT
"""Tile shapes and launch parameters, as pure functions of the problem, best first. `ops/common/triton_fitting.py` takes
the first that the GPU holds without spilling (tests/triton_compile holds it to that). Speed is not measured yet.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch

from ...common.triton_tiles import BYTES_PER_WARP, kind, padded

# Row kernels hold keys × head_dim elements of each operand and accumulator in the registers of at most 8 warps:
# 8192 is 32 a thread. A longer or wider head is cut into tiles of keys.
MAX_ROW_ELEMENTS = 8192
MAX_ROW = 256
MAX_TOKENS_PER_TILE = 256
# Scores beyond those that exist, as a part of those: powers of two seldom divide a grid.
MAX_WASTE = 0.1


@dataclass(frozen=True)
class MixConfig:
    """One kernel launch: tiles of block_m queries by block_n keys.

    `tail`: size of the last tile that a program walks, for the tokens that fill none; 0 where there are none.
    """

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int
    tail: int


@dataclass(frozen=True)
class ForwardConfig(MixConfig):
    """`whole_row`: block_n covers all keys (forward_row_kernel), else online softmax over tiles of block_n."""

    whole_row: bool


@dataclass(frozen=True)
class BackwardConfig:
    """Candidates, best first, either for `row`, one kernel for everything, or for `query` and `key`, the tiled two."""

    row: tuple[MixConfig, ...] = ()
    query: tuple[MixConfig, ...] = ()
    key: tuple[MixConfig, ...] = ()


# (block_m, block_n, num_warps, num_stages) of the tiled kernels by padded head_dim (32 stands for 16 too), best first.
# Narrower ones follow for grids that wide tiles overlap too far and for compilers that spill with what comes first.
# float32 products take all operands through registers, on tensor cores (TF32) and more so on the ordinary multipliers:
# their tiles are about a quarter. num_stages = 2 is not only for speed there: with the loads of the next tile in
# between, ptxas no longer fetches all operands of a tile at once.
FORWARD = {
    "half": {
        32: ((128, 64, 4, 3), (64, 64, 4, 3), (64, 32, 4, 3), (64, 32, 4, 2), (32, 32, 4, 2)),
        64: ((128, 64, 8, 3), (64, 64, 4, 3), (64, 32, 4, 3), (64, 32, 4, 2), (32, 32, 4, 2)),
        128: ((128, 64, 8, 2), (64, 32, 4, 2), (64, 32, 8, 2), (32, 32, 8, 2)),
        256: ((64, 32, 8, 2), (32, 32, 8, 2), (32, 16, 8, 1)),
    },
    "tf32": {
        32: ((64, 32, 4, 2), (32, 32, 4, 2), (32, 16, 4, 2)),
        64: ((64, 32, 8, 2), (32, 32, 4, 2), (32, 16, 4, 2), (32, 16, 8, 2)),
        128: ((64, 32, 8, 2), (32, 32, 8, 2), (32, 16, 8, 2), (32, 16, 8, 1)),
        256: ((32, 16, 8, 2), (32, 16, 8, 1), (16, 16, 8, 1)),
    },
    "ieee": {
        32: ((64, 32, 4, 2), (64, 32, 8, 2), (32, 32, 4, 2), (32, 32, 8, 2), (32, 16, 4, 2)),
        64: ((64, 32, 8, 2), (32, 32, 8, 2), (32, 16, 4, 2), (32, 16, 8, 2)),
        128: ((32, 16, 8, 2), (32, 16, 4, 2), (16, 16, 4, 2), (16, 16, 8, 2)),
        256: ((32, 16, 8, 2), (32, 16, 8, 1), (16, 16, 8, 2), (16, 16, 8, 1)),
    },
}
QUERY = {
    "half": {
        32: ((128, 64, 8, 2), (64, 64, 4, 2), (64, 32, 4, 2), (32, 32, 4, 2)),
        64: ((128, 64, 8, 2), (64, 64, 8, 2), (64, 32, 4, 2), (32, 32, 4, 2)),
        128: ((64, 64, 8, 2), (64, 32, 8, 2), (32, 32, 4, 2), (32, 32, 8, 2)),
        256: ((32, 32, 8, 2), (32, 32, 4, 2), (32, 16, 4, 2), (16, 16, 4, 1)),
    },
    "tf32": {
        32: ((64, 32, 4, 2), (32, 32, 4, 2), (32, 16, 4, 2)),
        64: ((32, 32, 4, 2), (32, 16, 4, 2), (16, 16, 4, 2)),
        128: ((32, 16, 4, 2), (32, 16, 8, 2), (16, 16, 4, 2), (64, 16, 4, 1)),
        # The last has 176 KiB of shared memory where operands of products come from there (sm_90).
        256: ((16, 16, 8, 2), (16, 16, 4, 2), (16, 16, 8, 1), (64, 16, 4, 1)),
    },
    "ieee": {
        32: ((32, 32, 4, 2), (64, 32, 8, 2), (32, 32, 8, 2), (32, 16, 4, 2)),
        64: ((64, 32, 8, 2), (32, 32, 8, 2), (32, 16, 4, 2), (16, 16, 4, 2)),
        128: ((32, 16, 8, 2), (32, 16, 4, 2), (16, 16, 4, 2), (16, 16, 8, 2)),
        256: ((16, 16, 8, 2), (16, 16, 4, 2), (16, 16, 8, 1), (16, 16, 4, 1)),
    },
}
KEY = {
    "half": {
        32: ((64, 128, 8, 2), (64, 64, 4, 2), (32, 64, 4, 2), (32, 32, 4, 2)),
        64: ((64, 64, 8, 2), (32, 64, 8, 2), (32, 64, 4, 2), (32, 32, 4, 2)),
        128: ((32, 64, 8, 2), (32, 32, 4, 2), (32, 32, 8, 2), (16, 32, 4, 2)),
        256: ((32, 32, 8, 2), (16, 32, 8, 2), (16, 16, 8, 2), (16, 16, 8, 1)),
    },
    "tf32": {
        32: ((32, 64, 4, 2), (32, 32, 4, 2), (16, 32, 4, 2), (16, 16, 4, 2)),
        64: ((32, 32, 4, 2), (32, 32, 8, 2), (16, 32, 4, 2), (16, 16, 4, 2)),
        128: ((16, 32, 8, 2), (16, 16, 4, 2), (16, 16, 8, 2), (16, 16, 8, 1)),
        256: ((16, 16, 8, 2), (16, 16, 8, 1), (16, 16, 4, 1)),
    },
    "ieee": {
        32: ((16, 64, 8, 2), (32, 32, 4, 2), (16, 32, 4, 2), (16, 16, 4, 2)),
        64: ((32, 32, 8, 2), (16, 32, 8, 2), (16, 32, 4, 2), (16, 16, 4, 2)),
        128: ((16, 16, 4, 2), (16, 32, 8, 2), (16, 16, 8, 2), (16, 16, 8, 1)),
        256: ((16, 16, 8, 2), (16, 16, 8, 1), (16, 16, 4, 2), (16, 16, 4, 1)),
    },
}


def warps(elements: int) -> int:
    """A power of two between 1 and 8."""
    return min(8, max(1, elements))


def row_fits(n: int, block_d: int) -> bool:
    """Whether one program can hold a whole head's keys."""
    return n <= MAX_ROW and padded(n) * block_d <= MAX_ROW_ELEMENTS


def tail(n: int, block: int) -> int:
    """Size of the tile for the tokens that fill no tile of `block`, 0 where there are none."""
    return padded(n % block) if n % block else 0


def waste(n: int, owned: int, walked: int) -> float:
    """Scores that are computed beyond the n² that exist, as a part of those, where a program owns a tile of `owned`
    tokens and walks those of the other kind in tiles of `walked`."""
    return -(-n // owned) * owned * (n // walked * walked + tail(n, walked)) / n**2 - 1


def tiled(
    table: dict, n: int, head_dim: int, dtype: torch.dtype, precision: str, owned: int
) -> list[tuple[int, int, int, int, int]]:
    """Candidates of a table for n tokens: those which waste little in their order, then the others by their waste.

    A small tile of narrow heads takes fewer warps than the table says, so that its threads load 16 bytes each.

    `owned`: which of (block_m, block_n) a program has one tile of, by position.
    """
    block_d = padded(head_dim)
    candidates = table[kind(dtype, precision)][max(32, block_d)]
    best_first = sorted(candidates, key=lambda tile: max(MAX_WASTE, waste(n, tile[owned], tile[1 - owned])))
    return [
        (
            block_m,
            block_n,
            min(num_warps, max(1, max(block_m, block_n) * block_d * dtype.itemsize // BYTES_PER_WARP)),
            num_stages,
            tail(n, (block_m, block_n)[1 - owned]),
        )
        for block_m, block_n, num_warps, num_stages in best_first
    ]


@lru_cache(maxsize=1024)
def forward_config(n: int, head_dim: int, dtype: torch.dtype, precision: str = "ieee") -> tuple[ForwardConfig, ...]:
    """Launch parameters of the forward, best first.

    A whole row takes one pass and the fewest reads. float32 stays tiled at any n: with a row of 64 keys on the
    ordinary multipliers the operands of one product alone fill the registers.
    """
    tiles = [ForwardConfig(*tile, whole_row=False) for tile in tiled(FORWARD, n, head_dim, dtype, precision, 0)]
    block_d = padded(head_dim)
    if dtype == torch.float32 or not row_fits(n, block_d):
        return tuple(tiles)
    row = padded(n)
    block_m = min(row, 128)  # each further block of queries reads the keys and values again, from L2
    whole = ForwardConfig(block_m, row, warps(block_m * max(row, block_d) // 1024), 1, 0, whole_row=True)
    return (whole, *tiles)


@lru_cache(maxsize=1024)
def backward_config(n: int, head_dim: int, dtype: torch.dtype, precision: str = "ieee") -> BackwardConfig:
    """Launch parameters of the backward, best first."""
    block_d, row = padded(head_dim), padded(n)
    if dtype == torch.float32 or not row_fits(n, block_d):
        return BackwardConfig(
            query=tuple(MixConfig(*tile) for tile in tiled(QUERY, n, head_dim, dtype, precision, 0)),
            key=tuple(MixConfig(*tile) for tile in tiled(KEY, n, head_dim, dtype, precision, 1)),
        )
    # The accumulators of keys and values fill most registers: blocks of at most 32 queries.
    block_m = min(row, 32)
    num_warps = warps(block_m * row * block_d // 16384)
    more_warps = min(8, 2 * num_warps)
    # A few rows of wide, uneven heads spill on four warps, where the compiler aims at 128 registers.
    tiles = ((block_m, num_warps), (block_m, more_warps), (16, num_warps), (16, more_warps), (16, 8))
    return BackwardConfig(row=tuple(MixConfig(m, row, warps, 1, 0) for m, warps in dict.fromkeys(tiles)))
