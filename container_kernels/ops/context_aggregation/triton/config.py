# SPDX-License-Identifier: MIT
"""Tile shapes and launch parameters, as pure functions of the problem: the same choice every run.

Every choice is a large tile that ptxas compiles for sm_80 and sm_90 without spilling a register and within the 99 KiB
of shared memory of the smallest sm_8x (tests/test_triton_compile.py holds it to that). Speed is not measured yet.
"""

from dataclasses import dataclass

import torch

from ...triton_device import Gpu

# Row kernels hold keys × head_dim elements of each operand and accumulator in the registers of at most 8 warps:
# 8192 is 32 a thread. A longer or wider head is cut into tiles of keys.
MAX_ROW_ELEMENTS = 8192
MAX_ROW = 256
MAX_TOKENS_PER_TILE = 256


@dataclass(frozen=True)
class MixConfig:
    """One kernel launch: tiles of block_m queries by block_n keys."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True)
class ForwardConfig(MixConfig):
    """`whole_row`: block_n covers all keys (forward_row_kernel), else online softmax over tiles of block_n."""

    whole_row: bool


@dataclass(frozen=True)
class BackwardConfig:
    """Either `row`, one kernel for everything, or `query` and `key`, the two tiled kernels."""

    row: MixConfig | None = None
    query: MixConfig | None = None
    key: MixConfig | None = None


# Tiled kernels by padded head_dim (32 stands for 16 too). float32 products run on the ordinary multipliers, whose
# operands must all pass through registers: their tiles are about a quarter. num_stages = 2 is not only for speed there:
# with the loads of the next tile in between, ptxas no longer fetches all operands of a tile at once.
FORWARD_16 = {32: (128, 64, 4, 3), 64: (128, 64, 8, 3), 128: (128, 64, 8, 2), 256: (64, 32, 8, 2)}
FORWARD_32 = {32: (64, 32, 4, 2), 64: (64, 32, 8, 2), 128: (32, 16, 8, 2), 256: (32, 16, 8, 2)}
QUERY_16 = {32: (128, 64, 8, 2), 64: (128, 64, 8, 2), 128: (64, 64, 8, 2), 256: (32, 32, 8, 2)}
QUERY_32 = {32: (32, 32, 4, 2), 64: (64, 32, 8, 2), 128: (32, 16, 8, 2), 256: (16, 16, 8, 2)}
KEY_16 = {32: (64, 128, 8, 2), 64: (64, 64, 8, 2), 128: (32, 64, 8, 2), 256: (32, 32, 8, 2)}
KEY_32 = {32: (16, 64, 8, 2), 64: (32, 32, 8, 2), 128: (16, 16, 4, 2), 256: (16, 16, 4, 2)}


def padded(size: int) -> int:
    """The power of two that holds `size` and that a tensor core accepts."""
    return max(16, 1 << (size - 1).bit_length())


def warps(elements: int) -> int:
    """A power of two between 1 and 8."""
    return min(8, max(1, elements))


def row_fits(n: int, block_d: int) -> bool:
    """Whether one program can hold a whole head's keys."""
    return n <= MAX_ROW and padded(n) * block_d <= MAX_ROW_ELEMENTS


def tiled(table: dict[int, tuple[int, int, int, int]], block_d: int) -> tuple[int, int, int, int]:
    """(block_m, block_n, num_warps, num_stages) for a padded head_dim."""
    return table[max(32, block_d)]


def forward_config(n: int, head_dim: int, unit: int, dtype: torch.dtype, gpu: Gpu) -> ForwardConfig:
    """Launch parameters of the forward.

    A whole row takes one pass and the fewest reads. float32 stays tiled at any n: with a row of 64 keys on the
    ordinary multipliers the operands of one product alone fill the registers.
    """
    block_d = padded(head_dim)
    if dtype == torch.float32:
        return ForwardConfig(*tiled(FORWARD_32, block_d), whole_row=False)
    if not row_fits(n, block_d):
        return ForwardConfig(*tiled(FORWARD_16, block_d), whole_row=False)
    row = padded(n)
    block_m = min(row, 128)  # each further block of queries reads the keys and values again, from L2
    return ForwardConfig(block_m, row, warps(block_m * max(row, block_d) // 1024), 1, whole_row=True)


def backward_config(n: int, head_dim: int, unit: int, dtype: torch.dtype, gpu: Gpu) -> BackwardConfig:
    """Launch parameters of the backward."""
    block_d, row = padded(head_dim), padded(n)
    exact = dtype == torch.float32
    if exact or not row_fits(n, block_d):
        return BackwardConfig(
            query=MixConfig(*tiled(QUERY_32 if exact else QUERY_16, block_d)),
            key=MixConfig(*tiled(KEY_32 if exact else KEY_16, block_d)),
        )
    # The accumulators of keys and values fill most registers: blocks of at most 32 queries.
    block_m = min(row, 32)
    return BackwardConfig(row=MixConfig(block_m, row, warps(block_m * row * block_d // 16384), 1))
