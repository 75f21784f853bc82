# SPDX-License-Identifier: MIT
"""Weight and bias gradient of the depthwise operation: all taps of a tile are summed in one reading."""

import triton
import triton.language as tl

from .primitives import image_columns, load_row


@triton.jit(do_not_specialize=["num_images", "num_parts"])
def backward_weight_kernel(
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
    KERNEL_H: tl.constexpr,
    KERNEL_W: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """partial[part, tap] = Σ grad_out[y - dy, x - dx] · x[y, x] over the part's columns, for all taps (dy, dx);
    partial[part, KERNEL_H * KERNEL_W] = Σ grad_out.

    partial is (num_parts, KERNEL_H * KERNEL_W + 1, C) float32. A part takes every num_parts-th block of columns.
    Each row of x meets the KERNEL_H rows of grad_out around it, which wait in registers.
    """
    PAD: tl.constexpr = KERNEL_H // 2
    channel_blocks = tl.cdiv(num_channels, CHANNELS)
    program = tl.program_id(0)
    part = program // channel_blocks
    channels = (program % channel_blocks) * CHANNELS + tl.arange(0, CHANNELS)

    zeros = tl.zeros([COLUMNS, CHANNELS], tl.float32)
    sums = ()
    for _ in tl.static_range(KERNEL_H * KERNEL_W):
        sums += (zeros,)
    bias_sum = zeros
    for block in range(part, tl.cdiv(num_images * width, COLUMNS), num_parts):
        image, x, exists = image_columns(block, num_images, width, COLUMNS)
        mask = exists[:, None] & (channels < num_channels)[None, :]
        window = ()  # grad_out rows row - PAD … row + PAD
        for offset in tl.static_range(KERNEL_H):
            window += load_row(grad_out_ptr, offset - PAD, image, x, channels, mask, height, width, grad_out_strides, 1)
        tiles = load_row(x_ptr, 0, image, x, channels, mask, height, width, x_strides, KERNEL_W)
        for row in range(0, height):
            next_window = window[1:] + load_row(
                grad_out_ptr, row + PAD + 1, image, x, channels, mask, height, width, grad_out_strides, 1
            )
            next_tiles = load_row(x_ptr, row + 1, image, x, channels, mask, height, width, x_strides, KERNEL_W)
            next_sums = ()
            for tap_row in tl.static_range(KERNEL_H):
                grad_out = window[KERNEL_H - 1 - tap_row].to(tl.float32)
                for tap_column in tl.static_range(KERNEL_W):
                    product = grad_out * tiles[tap_column].to(tl.float32)
                    next_sums += (sums[tap_row * KERNEL_W + tap_column] + product,)
            sums = next_sums
            bias_sum += window[PAD].to(tl.float32)
            window = next_window
            tiles = next_tiles

    out_ptr = partial_ptr + part.to(tl.int64) * (KERNEL_H * KERNEL_W + 1) * num_channels + channels
    for tap in tl.static_range(KERNEL_H * KERNEL_W):
        tl.store(out_ptr + tap * num_channels, tl.sum(sums[tap], 0), mask=channels < num_channels)
    tl.store(out_ptr + KERNEL_H * KERNEL_W * num_channels, tl.sum(bias_sum, 0), mask=channels < num_channels)
