# SPDX-License-Identifier: MIT
"""Device helpers that the kernels of the MLP share."""

import triton
import triton.language as tl


@triton.jit
def load_matrix(ptr, row_stride, num_rows, num_columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """A (ROWS, COLUMNS) tile that starts at `ptr`, 0 beyond num_rows and num_columns."""
    rows = tl.arange(0, ROWS)
    columns = tl.arange(0, COLUMNS)
    mask = (rows[:, None] < num_rows) & (columns[None, :] < num_columns)
    return tl.load(ptr + rows[:, None] * row_stride + columns[None, :], mask=mask, other=0.0)


@triton.jit
def store_matrix(ptr, tile, row_stride, num_rows, num_columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Write a tile, in the dtype of `ptr`, where it exists."""
    rows = tl.arange(0, ROWS)
    columns = tl.arange(0, COLUMNS)
    mask = (rows[:, None] < num_rows) & (columns[None, :] < num_columns)
    tl.store(ptr + rows[:, None] * row_stride + columns[None, :], tile, mask=mask)


@triton.jit
def remaining_units(start, HIDDEN: tl.constexpr, BLOCK_H: tl.constexpr):
    """Hidden units that a tile has from `start` on; a constant, which costs no mask, where tiles fit evenly."""
    if HIDDEN % BLOCK_H == 0:
        return BLOCK_H
    else:
        return HIDDEN - start
