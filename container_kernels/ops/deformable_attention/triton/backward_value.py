# SPDX-License-Identifier: MIT
"""Gradient of value: pixels collect what queries gave them, so that nothing is added by atomics, in no certain order.

A program has a tile of pixels of one head's level and walks over blocks of queries, whose points weigh each pixel by
hats, max(0, 1 - distance), across and along. A matrix of these weights times grad_out is the block's share. Blocks that
sample elsewhere on the level, as most do, are passed over by their bounding boxes, GROUP of which are read at once.
"""

import triton
import triton.language as tl

from ...common.triton_primitives import dot, rounded
from .primitives import level_size, load_point, locate, query_rows

# Boxes per bit of a word; beyond 31 the sign would be one.
GROUP = tl.constexpr(32)


@triton.jit(do_not_specialize=["num_queries", "num_heads"])
def boxes_kernel(
    locations_ptr,
    boxes_ptr,
    levels,
    num_queries,
    num_heads,
    LEVELS: tl.constexpr,
    POINTS: tl.constexpr,
    BLOCK_Q: tl.constexpr,
):
    """boxes (B, M, L, 4, blocks) float32: least and largest column and row, in pixels, of a block's points on a level.

    Points outside count for none; without points a box is from infinity to minus infinity, and meets nothing.
    """
    num_blocks = tl.cdiv(num_queries, BLOCK_Q)
    block, head, batch = locate(num_blocks, num_heads)
    rows, exists = query_rows(block, head, batch, num_queries, num_heads, BLOCK_Q)
    infinity = tl.full([BLOCK_Q], float("inf"), tl.float32)
    for level in range(0, LEVELS):
        height, width = level_size(levels, level, LEVELS)
        left, top = infinity, infinity
        right, bottom = -infinity, -infinity
        for index in range(0, POINTS):
            column, row, _, _ = load_point(locations_ptr, rows, exists, level, index, height, width, LEVELS, POINTS, 1)
            inside = (column > -1) & (column < width) & (row > -1) & (row < height)
            left = tl.minimum(left, tl.where(inside, column, float("inf")))
            right = tl.maximum(right, tl.where(inside, column, float("-inf")))
            top = tl.minimum(top, tl.where(inside, row, float("inf")))
            bottom = tl.maximum(bottom, tl.where(inside, row, float("-inf")))
        box = boxes_ptr + ((batch * num_heads + head) * LEVELS + level) * 4 * num_blocks + block
        tl.store(box, tl.min(left, 0))
        tl.store(box + num_blocks, tl.max(right, 0))
        tl.store(box + 2 * num_blocks, tl.min(top, 0))
        tl.store(box + 3 * num_blocks, tl.max(bottom, 0))


@triton.jit
def find_tile(tile, levels, LEVELS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """(level, pixels before it, height, width, first row, first column) of a tile; the last level's come first."""
    level, start, before, within, height, width = 0, 0, 0, 0, 1, 1
    tiles = 0
    for index in tl.static_range(LEVELS):
        rows, columns = levels[2 * index] >> 1, levels[2 * index + 1] >> 1
        tiles += tl.cdiv(rows, ROWS) * tl.cdiv(columns, COLUMNS)
    tile = tiles - 1 - tile
    for index in tl.static_range(LEVELS):
        rows, columns = levels[2 * index] >> 1, levels[2 * index + 1] >> 1
        if tile >= 0:
            level, start, within, height, width = index, before, tile, rows, columns
        before += rows * columns
        tile -= tl.cdiv(rows, ROWS) * tl.cdiv(columns, COLUMNS)
    across = tl.cdiv(width, COLUMNS)
    return level, start, height, width, within // across * ROWS, within % across * COLUMNS


@triton.jit
def boxes_that_meet(box, blocks, num_blocks, first_row, first_column, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """A bit for each of `blocks` that has a point less than a pixel from the tile."""
    known = blocks < num_blocks
    left = tl.load(box + blocks, mask=known, other=float("inf"))
    right = tl.load(box + num_blocks + blocks, mask=known, other=float("-inf"))
    top = tl.load(box + 2 * num_blocks + blocks, mask=known, other=float("inf"))
    bottom = tl.load(box + 3 * num_blocks + blocks, mask=known, other=float("-inf"))
    meets = (left < first_column + COLUMNS) & (right > first_column - 1)
    meets = meets & (top < first_row + ROWS) & (bottom > first_row - 1)
    return tl.sum(meets.to(tl.int64) << (blocks % GROUP).to(tl.int64), 0)


@triton.jit
def lowest_bit(word):
    """Position of the lowest bit of a positive number: the exponent of that bit as a float."""
    return ((word & -word).to(tl.float32).to(tl.int32, bitcast=True) >> 23) - 127


@triton.jit
def times_grad_out(hats, grad_out, total, PRECISION: tl.constexpr):
    """total + hats @ grad_out; hats (COLUMNS, BLOCK_Q) are float32, grad_out (BLOCK_Q, BLOCK_D) as it was.

    16 bits multiply bfloat16 with bfloat16, in parts whose sum is as good as the number: hats that were rounded once
    would add as much error as rounding grad_out did. float16 for hats has no room for large weights.
    """
    if grad_out.dtype == tl.float32:
        total = dot(hats, grad_out, total, PRECISION)
    else:
        high = rounded(hats, tl.bfloat16)
        low = rounded(hats - high.to(tl.float32), tl.bfloat16)
        grad_high = rounded(grad_out.to(tl.float32), tl.bfloat16)
        total = dot(low, grad_high, total, PRECISION)
        if grad_out.dtype == tl.float16:
            grad_low = rounded(grad_out.to(tl.float32) - grad_high.to(tl.float32), tl.bfloat16)
            total = dot(high, grad_low, total, PRECISION)
        total = dot(high, grad_high, total, PRECISION)
    return total


@triton.jit
def add_block(
    totals,
    grad_out_ptr,
    locations_ptr,
    weights_ptr,
    block,
    head,
    batch,
    level,
    height,
    width,
    first_row,
    columns,
    num_queries,
    num_heads,
    LEVELS: tl.constexpr,
    POINTS: tl.constexpr,
    STEP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Add what one block of queries gave to each row of a tile.

    A point's hats across are the same for all rows of a tile, and those along are one number a row: a pixel costs a
    multiplication and an addition, and the rest once for all rows.
    """
    rows, exists = query_rows(block, head, batch, num_queries, num_heads, BLOCK_Q)
    channels = tl.arange(0, BLOCK_D)[None, :]
    mask = exists[:, None] & (channels < HEAD_DIM)
    grad_out = tl.load(grad_out_ptr + rows[:, None] * HEAD_DIM + channels, mask=mask, other=0.0)
    hats = ()
    for _ in tl.static_range(ROWS):
        hats += (tl.zeros([COLUMNS, BLOCK_Q], tl.float32),)
    for first in range(0, POINTS, STEP):
        for index in tl.static_range(STEP):
            column, row, point, there = load_point(
                locations_ptr, rows, exists, level, first + index, height, width, LEVELS, POINTS, STEP
            )
            weight = tl.load(weights_ptr + point, mask=there, other=0.0).to(tl.float32)
            across = tl.maximum(1 - tl.abs(column[None, :] - columns[:, None]), 0.0)
            row -= first_row
            more = ()
            for tile_row in tl.static_range(ROWS):
                along = tl.maximum(1 - tl.abs(row - tile_row), 0.0) * weight
                more += (hats[tile_row] + across * along[None, :],)
            hats = more
    sums = ()
    for tile_row in tl.static_range(ROWS):
        sums += (times_grad_out(hats[tile_row], grad_out, totals[tile_row], PRECISION),)
    return sums


@triton.jit(do_not_specialize=["num_queries", "num_heads", "num_pixels", "num_tiles"])
def backward_value_kernel(
    grad_out_ptr,
    locations_ptr,
    weights_ptr,
    boxes_ptr,
    grad_value_ptr,
    levels,
    num_queries,
    num_heads,
    num_pixels,
    num_tiles,
    LEVELS: tl.constexpr,
    POINTS: tl.constexpr,
    STEP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """grad_value (B, S, M, D), contiguous, of tiles of ROWS × COLUMNS pixels; `boxes` are of the same BLOCK_Q queries.

    Order of programs: images, tiles, heads. Tiles of the smallest maps, which meet most queries, begin.

    A grad_out, or a weight, that is not finite makes NaN of what it would have made infinite or NaN
    and, in the channels of that grad_out or in all, of further pixels of the tiles that its block of queries meets:
    their weight of it is zero, and zero times infinity is added.
    """
    program = tl.program_id(0)
    head = (program % num_heads).to(tl.int64)
    batch = (program // num_heads // num_tiles).to(tl.int64)
    tile = program // num_heads % num_tiles
    level, start, height, width, first_row, first_column = find_tile(tile, levels, LEVELS, ROWS, COLUMNS)
    columns = (first_column + tl.arange(0, COLUMNS)).to(tl.float32)
    num_blocks = tl.cdiv(num_queries, BLOCK_Q)
    box = boxes_ptr + ((batch * num_heads + head) * LEVELS + level) * 4 * num_blocks
    totals = ()
    for _ in tl.static_range(ROWS):
        totals += (tl.zeros([COLUMNS, BLOCK_D], tl.float32),)
    for group in range(0, num_blocks, GROUP):
        blocks = group + tl.arange(0, GROUP)
        word = boxes_that_meet(box, blocks, num_blocks, first_row, first_column, ROWS, COLUMNS)
        while word != 0:
            totals = add_block(
                totals,
                grad_out_ptr,
                locations_ptr,
                weights_ptr,
                group + lowest_bit(word),
                head,
                batch,
                level,
                height,
                width,
                first_row,
                columns,
                num_queries,
                num_heads,
                LEVELS,
                POINTS,
                STEP,
                HEAD_DIM,
                BLOCK_D,
                ROWS,
                COLUMNS,
                BLOCK_Q,
                PRECISION,
            )
            word = word & (word - 1)
    x = first_column + tl.arange(0, COLUMNS)
    channels = tl.arange(0, BLOCK_D)[None, :]
    mask = (x < width)[:, None] & (channels < HEAD_DIM)
    for tile_row in tl.static_range(ROWS):
        y = first_row + tile_row
        pixels = (batch * num_pixels + start + y * width + x) * num_heads + head
        grad_value = rounded(totals[tile_row], grad_value_ptr.dtype.element_ty)
        tl.store(grad_value_ptr + pixels[:, None] * HEAD_DIM + channels, grad_value, mask=mask & (y < height))
