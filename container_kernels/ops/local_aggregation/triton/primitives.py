# SPDX-License-Identifier: MIT
"""Walk of the depthwise kernels over images.

A program owns a (COLUMNS, CHANNELS) tile: columns of all images side by side (column = image * width + x), so that
narrow images waste no lanes. It walks down the rows: a row is loaded once for each horizontal tap (the shifted copies
are L1 hits) and serves all vertical taps from registers. A thread then holds kh * kw weights or sums for each of its
channels, which is why the tile is only two channels a thread wide.
"""

import triton
import triton.language as tl


@triton.jit
def image_columns(block, num_images, width, COLUMNS: tl.constexpr):
    """(image, x, exists) of the columns in one block; image and x in int64, because they multiply strides."""
    columns = tl.cast(block, tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    return columns // width, columns % width, columns < num_images * width


@triton.jit
def load_row(ptr, row, image, x, channels, mask, height, width, strides, SHIFTS: tl.constexpr):
    """One (columns, channels) tile for each of SHIFTS horizontal taps of a row, zero outside the image."""
    row = tl.cast(row, tl.int64)
    row_ptr = ptr + row * strides[1]
    width = tl.where((row >= 0) & (row < height), width, 0)  # a row outside has no columns
    tiles = ()
    for tap in tl.static_range(SHIFTS):
        shifted = x + tap - SHIFTS // 2
        inside = (shifted >= 0) & (shifted < width)
        pointers = row_ptr + (image * strides[0] + shifted * strides[2])[:, None] + channels[None, :]
        tiles += (tl.load(pointers, mask=mask & inside[:, None], other=0.0),)
    return tiles
