# SPDX-License-Identifier: MIT
"""One tile of a product of token rows with weights, and the end of a residual branch, as several ops need them.

Rows are the tokens of all samples, contiguous. A tile starts at 64-bit indices; offsets inside of it have 32 bits,
which halves the registers of its addresses.
"""

import torch
import triton
import triton.language as tl

from .triton_primitives import dot, rounded


def row_scale(sample_scale: torch.Tensor | None, tokens: int) -> torch.Tensor | None:
    """sample_scale (B,) for each of a sample's `tokens` rows: 4 bytes a row, where a kernel would have to divide.

    Divisions are calls, around which a kernel that fills the registers spills them.
    """
    return None if sample_scale is None else sample_scale.repeat_interleave(tokens)


@triton.jit
def locate_tile(num_columns, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """(first row, first column) of this program's tile; columns vary fastest: tiles of the same rows share x in L2."""
    column_tiles = tl.cdiv(num_columns, BLOCK_N)
    program = tl.program_id(0)
    return tl.cast(program // column_tiles, tl.int64) * BLOCK_M, program % column_tiles * BLOCK_N


@triton.jit
def remaining(start, count, BLOCK: tl.constexpr):
    """Those of `count` that a tile of BLOCK has from `start` on, in 32 bits, so that masks compare 32 bits."""
    return tl.minimum(count - start, BLOCK).to(tl.int32)


@triton.jit
def product(
    a_ptr,
    b_ptr,
    first_row,
    first_column,
    num_rows,
    num_columns,
    depth,
    DEPTH_FIRST: tl.constexpr,
    PRECISION: tl.constexpr,
    EVEN_DEPTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """(BLOCK_M, BLOCK_N) float32: Σ_k a[row, k] · b[column, k]; both contiguous, b as (depth, columns) if DEPTH_FIRST.

    Rows beyond the last repeat it, so that loads need no mask; columns beyond the last do the same, or are 0 if
    DEPTH_FIRST. EVEN_DEPTH says that depth is a multiple of BLOCK_K; depth itself is no constant, or the unrolled loop
    would fill the registers.
    """
    rows = tl.minimum(tl.arange(0, BLOCK_M), remaining(first_row, num_rows, BLOCK_M) - 1)
    left_columns = remaining(first_column, num_columns, BLOCK_N)
    inner = tl.arange(0, BLOCK_K)
    a_ptr += first_row * depth
    a_offsets = rows[:, None] * depth + inner[None, :]
    if DEPTH_FIRST:
        columns = tl.arange(0, BLOCK_N)
        b_ptr += first_column
        b_offsets = inner[:, None] * num_columns + columns[None, :]
    else:
        columns = tl.minimum(tl.arange(0, BLOCK_N), left_columns - 1)
        b_ptr += tl.cast(first_column, tl.int64) * depth
        b_offsets = columns[None, :] * depth + inner[:, None]
    columns_exist = (columns < left_columns)[None, :]
    accumulator = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, depth, BLOCK_K):
        b_start = tl.cast(start, tl.int64) * num_columns if DEPTH_FIRST else start
        if EVEN_DEPTH:
            a = tl.load(a_ptr + start + a_offsets)
            if DEPTH_FIRST:
                b = tl.load(b_ptr + b_start + b_offsets, mask=columns_exist, other=0.0)
            else:
                b = tl.load(b_ptr + b_start + b_offsets)
        else:
            exists = inner < depth - start
            b_mask = exists[:, None] & columns_exist if DEPTH_FIRST else exists[:, None]
            a = tl.load(a_ptr + start + a_offsets, mask=exists[None, :], other=0.0)
            b = tl.load(b_ptr + b_start + b_offsets, mask=b_mask, other=0.0)
        accumulator = dot(a, b, accumulator, PRECISION)
    return accumulator


@triton.jit
def load_scale(scale_ptr, first_row, num_rows, BLOCK_M: tl.constexpr):
    """The scale of each of BLOCK_M rows, 0 beyond the last; see `row_scale`."""
    rows = tl.arange(0, BLOCK_M)
    return tl.load(scale_ptr + first_row + rows, mask=rows < remaining(first_row, num_rows, BLOCK_M), other=0.0)


@triton.jit
def branch_epilogue(
    branch,
    bias_ptr,
    scale_ptr,
    residual_ptr,
    out_ptr,
    first_row,
    first_column,
    num_rows,
    num_columns,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Write out = scale · (branch + bias) + residual; returns it as rounded, in float32, 0 outside of `out`.

    residual and out are contiguous (rows, columns), scale is `row_scale`'s; the residual and the scale may be None.
    """
    rows = tl.arange(0, BLOCK_M)
    columns = tl.arange(0, BLOCK_N)
    exists = columns < remaining(first_column, num_columns, BLOCK_N)
    mask = (rows < remaining(first_row, num_rows, BLOCK_M))[:, None] & exists[None, :]
    offsets = rows[:, None] * num_columns + columns[None, :]
    first = first_row * num_columns + first_column
    bias = tl.load(bias_ptr + first_column + columns, mask=exists, other=0.0)
    branch += bias[None, :]
    if scale_ptr is not None:
        branch *= load_scale(scale_ptr, first_row, num_rows, BLOCK_M)[:, None]
    if residual_ptr is not None:
        branch += tl.load(residual_ptr + first + offsets, mask=mask, other=0.0).to(tl.float32)
    out = rounded(branch, out_ptr.dtype.element_ty)
    tl.store(out_ptr + first + offsets, out, mask=mask)
    return tl.where(mask, out.to(tl.float32), 0.0)
