# SPDX-License-Identifier: MIT
"""Depthwise kernels for windows whose taps are too many for registers: one tap after the other, from cache.

Right for any window; `forward.py` and `backward.py` are those to be fast with.
"""

import triton
import triton.language as tl

from ...common.triton_primitives import rounded
from ...statistics.triton_partials import store_partial, tile_pivot
from .primitives import image_columns, load_row


@triton.jit(do_not_specialize=["num_images", "kernel_h", "kernel_w", "rows_per_strip"])
def wide_forward_kernel(
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
    kernel_h,
    kernel_w,
    COLUMNS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """out[y, x] = bias + Σ_taps taps[dy, dx] · x[y + dy, x + dx] for a strip of rows.

    partial, or None: (column blocks * strips, 4, C) float32, the tile's statistics by channel.
    """
    channel_blocks = tl.cdiv(num_channels, CHANNELS)
    strips = tl.cdiv(height, rows_per_strip)
    program = tl.program_id(0)
    channels = (program % channel_blocks) * CHANNELS + tl.arange(0, CHANNELS)
    first = (program // channel_blocks) % strips * rows_per_strip
    last = tl.minimum(first + rows_per_strip, height)
    image, x, exists = image_columns(program // (channel_blocks * strips), num_images, width, COLUMNS)
    mask = exists[:, None] & (channels < num_channels)[None, :]
    tile_channels = tl.zeros([COLUMNS, 1], tl.int32) + channels[None, :]

    bias = tl.zeros([COLUMNS, CHANNELS], tl.float32)
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + tile_channels, mask=mask, other=0.0)
    num_columns = tl.sum(exists.to(tl.int32))
    pivot = tl.zeros([CHANNELS], tl.float32)
    out_sum = tl.zeros([COLUMNS, CHANNELS], tl.float32)
    square_sum = tl.zeros([COLUMNS, CHANNELS], tl.float32)
    for row in range(first, last):
        total = bias
        for tap in range(0, kernel_h * kernel_w):
            weight = tl.load(taps_ptr + tap * num_channels + tile_channels, mask=mask, other=0.0)
            source, shift = row + tap // kernel_w - kernel_h // 2, tap % kernel_w - kernel_w // 2
            tiles = load_row(x_ptr, source, image, x + shift, channels, mask, height, width, strides, 1)
            total += tiles[0].to(tl.float32) * weight
        pixels = (image * height + row) * width + x
        written = rounded(total, out_ptr.dtype.element_ty)
        tl.store(out_ptr + pixels[:, None] * num_channels + channels[None, :], written, mask=mask)
        if partial_ptr is not None:
            value = written.to(tl.float32)
            if row == first:
                pivot = tile_pivot(value, num_columns, out_ptr.dtype.element_ty)
            deviation = tl.where(exists[:, None], value - pivot[None, :], 0.0)
            out_sum += deviation
            square_sum += deviation * deviation
    if partial_ptr is not None:
        count = num_columns * (last - first)
        part = program // channel_blocks
        out_sum, square_sum = tl.sum(out_sum, 0), tl.sum(square_sum, 0)
        store_partial(partial_ptr, part, channels, num_channels, count, pivot, out_sum, square_sum)


@triton.jit(do_not_specialize=["num_images", "kernel_h", "kernel_w", "num_parts"])
def wide_backward_weight_kernel(
    grad_out_ptr,
    x_ptr,
    partial_ptr,
    grad_out_strides,
    x_strides,
    num_images,
    height,
    width,
    num_channels,
    num_parts,
    kernel_h,
    kernel_w,
    COLUMNS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """partial[part, tap] = Σ grad_out[y - dy, x - dx] · x[y, x] over the part's columns; a program has one tap.

    partial is (num_parts, kernel_h * kernel_w + 1, C) float32, whose last row is Σ grad_out. A part takes every
    num_parts-th block of columns.
    """
    channel_blocks = tl.cdiv(num_channels, CHANNELS)
    num_taps = kernel_h * kernel_w
    program = tl.program_id(0)
    tap = program // channel_blocks % (num_taps + 1)
    part = program // (channel_blocks * (num_taps + 1))
    channels = (program % channel_blocks) * CHANNELS + tl.arange(0, CHANNELS)
    down, right = tap // kernel_w - kernel_h // 2, tap % kernel_w - kernel_w // 2

    sums = tl.zeros([COLUMNS, CHANNELS], tl.float32)
    for block in range(part, tl.cdiv(num_images * width, COLUMNS), num_parts):
        image, x, exists = image_columns(block, num_images, width, COLUMNS)
        mask = exists[:, None] & (channels < num_channels)[None, :]
        for row in range(0, height):
            grad_out = load_row(grad_out_ptr, row, image, x, channels, mask, height, width, grad_out_strides, 1)[0]
            if tap == num_taps:
                sums += grad_out.to(tl.float32)
            else:
                tiles = load_row(x_ptr, row + down, image, x + right, channels, mask, height, width, x_strides, 1)
                sums += grad_out.to(tl.float32) * tiles[0].to(tl.float32)
    out_ptr = partial_ptr + (part.to(tl.int64) * (num_taps + 1) + tap) * num_channels + channels
    tl.store(out_ptr, tl.sum(sums, 0), mask=channels < num_channels)
