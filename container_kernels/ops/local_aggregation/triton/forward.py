# SPDX-License-Identifier: MIT
"""Depthwise cross-correlation, channels last: rows slide through registers."""

import triton
import triton.language as tl

from ...common.triton_primitives import rounded
from ...statistics.triton_partials import store_partial, tile_pivot
from .primitives import image_columns, load_row


@triton.jit
def store_row(out_ptr, row, tile, columns, mask, width, num_channels):
    """Write one row of a tile to the contiguous (B, H, W, C) output; returns what it now holds, in float32."""
    row_ptr = out_ptr + tl.cast(row, tl.int64) * width * num_channels
    tile = rounded(tile, out_ptr.dtype.element_ty)
    tl.store(row_ptr + columns, tile, mask=mask)
    return tile.to(tl.float32)


@triton.jit(do_not_specialize=["num_images", "rows_per_strip"])
def forward_kernel(
    x_ptr,
    taps_ptr,
    bias_ptr,
    out_ptr,
    partial_ptr,
    strides,
    num_images,
    height,
    width,
    num_channels,
    rows_per_strip,
    KERNEL_H: tl.constexpr,
    KERNEL_W: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """out[y, x] = bias + Σ_taps taps[dy, dx] · x[y + dy, x + dx] for a strip of rows.

    Each input row adds to the KERNEL_H output rows that see it; the oldest of these sums is then complete.

    partial, or None: (column blocks * strips, 4, C) float32, the tile's statistics by channel.
    """
    PAD: tl.constexpr = KERNEL_H // 2
    channel_blocks = tl.cdiv(num_channels, CHANNELS)
    strips = tl.cdiv(height, rows_per_strip)
    program = tl.program_id(0)
    channels = (program % channel_blocks) * CHANNELS + tl.arange(0, CHANNELS)
    first = (program // channel_blocks) % strips * rows_per_strip
    last = tl.minimum(first + rows_per_strip, height)
    image, x, exists = image_columns(program // (channel_blocks * strips), num_images, width, COLUMNS)
    mask = exists[:, None] & (channels < num_channels)[None, :]

    # Addressed as whole tiles, so that each thread loads its own channels in the layout that it computes in.
    tile_channels = tl.zeros([COLUMNS, 1], tl.int32) + channels[None, :]
    weights = ()
    for tap in tl.static_range(KERNEL_H * KERNEL_W):
        weights += (tl.load(taps_ptr + tap * num_channels + tile_channels, mask=mask, other=0.0),)
    bias = tl.zeros([COLUMNS, CHANNELS], tl.float32)
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + tile_channels, mask=mask, other=0.0)
    sums = ()
    for _ in tl.static_range(KERNEL_H):
        sums += (bias,)

    num_columns = tl.sum(exists.to(tl.int32))
    pivot = tl.zeros([CHANNELS], tl.float32)
    out_sum = tl.zeros([COLUMNS, CHANNELS], tl.float32)
    square_sum = tl.zeros([COLUMNS, CHANNELS], tl.float32)
    out_columns = (image * height * width + x)[:, None] * num_channels + channels[None, :]
    start = tl.maximum(first - PAD, 0)  # rows outside the image add nothing: they need no visit
    end = tl.minimum(last + PAD, height)
    tiles = load_row(x_ptr, start, image, x, channels, mask, height, width, strides, KERNEL_W)
    for row in range(start, end):
        # One row ahead: nothing else hides the latency of a loop that only loads and adds.
        next_tiles = load_row(x_ptr, row + 1, image, x, channels, mask, height, width, strides, KERNEL_W)
        next_sums = ()
        for back in tl.static_range(KERNEL_H):  # the output row that sees this one by tap row KERNEL_H - 1 - back
            total = sums[back]
            for tap_column in tl.static_range(KERNEL_W):
                weight = weights[(KERNEL_H - 1 - back) * KERNEL_W + tap_column]
                total += tiles[tap_column].to(tl.float32) * weight
            next_sums += (total,)
        if row - PAD >= first:
            written = store_row(out_ptr, row - PAD, next_sums[0], out_columns, mask, width, num_channels)
            if partial_ptr is not None:
                if row - PAD == first:
                    pivot = tile_pivot(written, num_columns, out_ptr.dtype.element_ty)
                deviation = tl.where(exists[:, None], written - pivot[None, :], 0.0)
                out_sum += deviation
                square_sum += deviation * deviation
        next_sums += (bias,)
        sums = next_sums[1:]
        tiles = next_tiles
    for late in tl.static_range(PAD):  # at the bottom of the image: sums that no further row completes
        row = end - PAD + late
        if (row >= first) & (row < last):
            written = store_row(out_ptr, row, sums[late], out_columns, mask, width, num_channels)
            if partial_ptr is not None:
                if row == first:
                    pivot = tile_pivot(written, num_columns, out_ptr.dtype.element_ty)
                deviation = tl.where(exists[:, None], written - pivot[None, :], 0.0)
                out_sum += deviation
                square_sum += deviation * deviation
    if partial_ptr is not None:
        count = num_columns * (last - first)
        part = program // channel_blocks
        out_sum, square_sum = tl.sum(out_sum, 0), tl.sum(square_sum, 0)
        store_partial(partial_ptr, part, channels, num_channels, count, pivot, out_sum, square_sum)
