# SPDX-License-Identifier: MIT
"""Forward: a program has all channels of a block of queries of one head.

A thread has 16 bytes of channels, so that 4 threads, of 32 channels in 16 bits, repeat the arithmetic of a point that a
thread per channel repeats 32 times.
"""

import triton
import triton.language as tl

from ...common.triton_primitives import rounded
from .primitives import level_size, load_corners, load_point, locate, query_rows


@triton.jit(do_not_specialize=["stride_b", "stride_s", "stride_m", "num_queries", "num_heads"])
def forward_kernel(
    value_ptr,
    locations_ptr,
    weights_ptr,
    out_ptr,
    levels,
    stride_b,
    stride_s,
    stride_m,
    num_queries,
    num_heads,
    LEVELS: tl.constexpr,
    POINTS: tl.constexpr,
    STEP: tl.constexpr,
    UNIT: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_Q: tl.constexpr,
):
    """out (B, Q, M, D), contiguous: Σ weight · bilinear(value). Strides of value are in units of UNIT elements.

    STEP points at a time have their loads in flight together.
    """
    block, head, batch = locate(tl.cdiv(num_queries, BLOCK_Q), num_heads)
    rows, exists = query_rows(block, head, batch, num_queries, num_heads, BLOCK_Q)
    level_ptr = value_ptr + (batch * stride_b + head * stride_m) * UNIT
    total = tl.zeros([BLOCK_Q, BLOCK_D], tl.float32)
    for level in range(0, LEVELS):
        height, width = level_size(levels, level, LEVELS)
        for first in range(0, POINTS, STEP):
            for index in tl.static_range(STEP):
                column, row, point, there = load_point(
                    locations_ptr, rows, exists, level, first + index, height, width, LEVELS, POINTS, STEP
                )
                weight = tl.load(weights_ptr + point, mask=there, other=0.0).to(tl.float32)
                tiles, right, down = load_corners(
                    level_ptr, column, row, height, width, stride_s, UNIT, HEAD_DIM, BLOCK_D
                )
                lower, upper = weight * down, weight * (1 - down)
                # One by one: a sum of products in brackets would be another addition.
                total += (upper * (1 - right))[:, None] * tiles[0]
                total += (upper * right)[:, None] * tiles[1]
                total += (lower * (1 - right))[:, None] * tiles[2]
                total += (lower * right)[:, None] * tiles[3]
        level_ptr += (height * width).to(tl.int64) * stride_s * UNIT
    channels = tl.arange(0, BLOCK_D)[None, :]
    mask = exists[:, None] & (channels < HEAD_DIM)
    tl.store(out_ptr + rows[:, None] * HEAD_DIM + channels, rounded(total, out_ptr.dtype.element_ty), mask=mask)
