# SPDX-License-Identifier: MIT
"""Tile shapes and launch parameters, as pure functions of the problem, best first. `ops/common/triton_fitting.py` takes
the first that the GPU holds without spilling (tests/triton_compile holds it to that). Speed is not measured yet.
"""

from dataclasses import dataclass
from functools import lru_cache

from ...common.triton_tiles import padded

# Points whose loads a program has in flight together: four have 16 loads of 16 bytes each, 64 registers.
MAX_STEP = 4
# Queries of a box and of a product's depth. Wide blocks meet more tiles, narrow ones repeat what a block costs once.
BLOCK_Q = 32


@dataclass(frozen=True)
class SamplingConfig:
    """A block of queries, all channels of a head."""

    block_q: int
    num_warps: int


@dataclass(frozen=True)
class ValueConfig:
    """A tile of rows × columns pixels, all channels of a head."""

    rows: int
    columns: int
    num_warps: int


# (rows, columns, warps) by padded head_dim, best first. One warp has all hats of a pixel row without exchanging any,
# and a query's numbers once; each further warp repeats those. A few candidates, since ptxas spills some words of any
# of them on one GPU or another: of float16, in three products, most.
VALUE = {
    16: ((4, 16, 1), (2, 16, 1), (4, 16, 2), (4, 16, 4)),
    32: ((4, 16, 1), (2, 16, 1), (4, 16, 2), (4, 16, 4)),
    64: ((4, 16, 2), (4, 16, 4), (2, 16, 2), (2, 16, 4)),
    128: ((4, 16, 4), (4, 16, 8), (2, 16, 4), (2, 16, 8), (1, 16, 4)),
    256: ((4, 16, 8), (2, 16, 8), (1, 16, 8), (1, 16, 4)),
}


def step(points: int) -> int:
    """Points that a program walks together, so that few steps leave few places empty."""
    return -(-points // -(-points // MAX_STEP))


def places(points: int) -> int:
    """The power of two that holds a step."""
    return 1 << (step(points) - 1).bit_length()


def block_d(head_dim: int) -> int:
    """The power of two that holds a head."""
    return 1 << (head_dim - 1).bit_length()


@lru_cache(maxsize=1024)
def sampling_config(head_dim: int, vector: int) -> tuple[SamplingConfig, ...]:
    """As many queries as give every thread `vector` channels, which it reads at once, of one query, and at least two.

    A thread of several queries repeats their addresses and weights, and has no registers left (33 channels spilled).
    For the same tile of a thread, ptxas spills two words in blocks of 4 warps on sm_86 and sm_89, to fit four of those.
    """
    configs = []
    for num_warps, share in ((4, 1), (8, 1), (2, 1), (1, 1), (4, 2)):
        queries = num_warps * 32 * max(2, vector) // block_d(head_dim) // share
        configs.append(SamplingConfig(min(32 * num_warps, max(1, queries)), num_warps))
    return tuple(dict.fromkeys(configs))


@lru_cache(maxsize=1024)
def value_config(head_dim: int) -> tuple[ValueConfig, ...]:
    """Tiles of few rows for wide heads, whose sums fill the registers."""
    return tuple([ValueConfig(*tile) for tile in VALUE[padded(head_dim)]])
