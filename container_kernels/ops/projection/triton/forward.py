# SPDX-License-Identifier: MIT
"""The projection: a tiled matrix product whose epilogue is the rest of the residual branch."""

import triton
import triton.language as tl

from ...triton_product import finish_branch, locate_tile, product


@triton.jit(do_not_specialize=["num_rows"])
def forward_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    residual_ptr,
    scale_ptr,
    out_ptr,
    partial_ptr,
    num_rows,
    channels,
    out_channels,
    UNIT: tl.constexpr,
    PRECISION: tl.constexpr,
    EVEN_DEPTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One tile of out = sample_scale · (x weightᵀ + bias) + residual.

    partial, or None: (row tiles, 2, C_out) float32, the sums of the tile's out and out², as rounded, by channel.
    channels and out_channels come in units of UNIT elements.
    """
    channels *= UNIT
    out_channels *= UNIT
    row, column = locate_tile(out_channels, BLOCK_M, BLOCK_N)
    branch = product(
        x_ptr,
        weight_ptr,
        row,
        column,
        num_rows,
        out_channels,
        channels,
        False,
        PRECISION,
        EVEN_DEPTH,
        BLOCK_M,
        BLOCK_N,
        BLOCK_K,
    )
    written = finish_branch(
        branch,
        bias_ptr,
        scale_ptr,
        residual_ptr,
        out_ptr,
        row,
        column,
        num_rows,
        out_channels,
        BLOCK_M,
        BLOCK_N,
    )
    if partial_ptr is not None:
        columns = column + tl.arange(0, BLOCK_N)
        sum_ptr = partial_ptr + row // BLOCK_M * 2 * out_channels + columns
        tl.store(sum_ptr, tl.sum(written, 0), mask=columns < out_channels)
        tl.store(sum_ptr + out_channels, tl.sum(written * written, 0), mask=columns < out_channels)
