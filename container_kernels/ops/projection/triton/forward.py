# SPDX-License-Identifier: MIT
"""The projection: a tiled matrix product whose epilogue is the rest of the residual branch."""

import triton
import triton.language as tl

from ...common.triton_matmul import branch_epilogue, locate_tile, product, remaining
from ...statistics.triton_partials import store_partial, tile_pivot


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

    partial, or None: (row tiles, 4, C_out) float32, the statistics by channel of the tile's out as rounded.
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
    written = branch_epilogue(
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
        count = remaining(row, num_rows, BLOCK_M)
        pivot = tile_pivot(written, count, out_ptr.dtype.element_ty)
        deviation = tl.where((tl.arange(0, BLOCK_M) < count)[:, None], written - pivot[None, :], 0.0)
        total, square_total = tl.sum(deviation, 0), tl.sum(deviation * deviation, 0)
        columns = column + tl.arange(0, BLOCK_N)
        store_partial(partial_ptr, row // BLOCK_M, columns, out_channels, count, pivot, total, square_total)
