# SPDX-License-Identifier: MIT
"""Where queries, heads and levels lie, and the points that a block of queries has on one level.

A program has a block of neighbouring queries of one head: they sample neighbouring pixels, which they then share in L1.

The sizes of levels come as odd numbers (`triton.encoded`): of integers in a tuple Triton compiles in whether they are
1 or multiples of 16, `do_not_specialize` does not reach them, and every image size would be a kernel of its own.
"""

import triton
import triton.language as tl

# Left of and above every map, and of what its first pixels reach.
OUTSIDE = tl.constexpr(-2.0)


@triton.jit
def locate(blocks_per_head, num_heads):
    """(block of queries, head, batch) of this program; batch and head in int64, because they multiply strides.

    Blocks vary fastest: those that run together sample one head's maps.
    """
    program = tl.program_id(0)
    head = (program // blocks_per_head) % num_heads
    batch = program // (blocks_per_head * num_heads)
    return program % blocks_per_head, head.to(tl.int64), batch.to(tl.int64)


@triton.jit
def level_size(levels, level, LEVELS: tl.constexpr):
    """(height, width) of a level, whose number need not be known to the compiler: loops over levels stay loops."""
    height, width = levels[0], levels[1]
    for index in tl.static_range(1, LEVELS):
        if level == index:
            height, width = levels[2 * index], levels[2 * index + 1]
    return height >> 1, width >> 1


@triton.jit
def query_rows(block, head, batch, num_queries, num_heads, BLOCK_Q: tl.constexpr):
    """(rows, exists) of a block of queries: which row of B · Q · M each is, in int64, and whether there is such."""
    queries = block * BLOCK_Q + tl.arange(0, BLOCK_Q)
    return (batch * num_queries + queries) * num_heads + head, queries < num_queries


@triton.jit
def load_point(
    locations_ptr,
    rows,
    exists,
    level,
    index,
    height,
    width,
    LEVELS: tl.constexpr,
    POINTS: tl.constexpr,
    STEP: tl.constexpr,
):
    """(column, row) of one point of each query, in pixels of the level, then where its weight is, and if it exists.

    A coordinate beyond what the map reaches, and NaN, becomes one just outside: in floating point, since as an integer
    a distant one would be undefined. So do points that do not exist: of no query, or in the last step of a walk by
    STEP. x and y come with one load.
    """
    if POINTS % STEP != 0:
        exists = exists & (index < POINTS)
    point = rows * (LEVELS * POINTS) + (level * POINTS + index)
    pairs = locations_ptr + (2 * point)[:, None] + tl.arange(0, 2)[None, :]
    x, y = tl.split(tl.load(pairs, mask=exists[:, None], other=float("-inf")).to(tl.float32))
    columns, lines = width.to(tl.float32), height.to(tl.float32)
    column, row = x * columns - 0.5, y * lines - 0.5
    column = tl.where(column > -1, tl.minimum(column, columns), OUTSIDE)
    row = tl.where(row > -1, tl.minimum(row, lines), OUTSIDE)
    return column, row, point, exists


@triton.jit
def load_corners(
    level_ptr,
    column,
    row,
    height,
    width,
    stride,
    UNIT: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """(tiles, right, down) of the four pixels around each point, upper left first, and its fractions.

    A tile (BLOCK_Q, BLOCK_D) is float32, zero where its pixel does not exist; `stride` is in units.
    """
    left, top = tl.floor(column), tl.floor(row)
    x, y = left.to(tl.int32), top.to(tl.int32)
    in_left, in_right = (x >= 0) & (x < width), (x >= -1) & (x < width - 1)
    in_top, in_bottom = (y >= 0) & (y < height), (y >= -1) & (y < height - 1)
    exist = (in_top & in_left, in_top & in_right, in_bottom & in_left, in_bottom & in_right)
    channels = tl.arange(0, BLOCK_D)[None, :]
    stride = stride.to(tl.int64)
    # A product of two 32-bit numbers, whose result has 64 bits, is one instruction; units come afterwards.
    upper = level_ptr + ((y * width + x).to(tl.int64) * stride * UNIT)[:, None] + channels
    lower = upper + width * stride * UNIT
    tiles = ()
    for corner in tl.static_range(4):
        mask = exist[corner][:, None]
        if HEAD_DIM != BLOCK_D:
            mask = mask & (channels < HEAD_DIM)
        pointers = (lower if corner // 2 else upper) + (corner % 2) * stride * UNIT
        tiles += (tl.load(pointers, mask=mask, other=0.0).to(tl.float32),)
    return tiles, column - left, row - top
