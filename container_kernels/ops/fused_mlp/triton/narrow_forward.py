# SPDX-License-Identifier: MIT
"""Forward of the MLP for narrow channels: a tile of the hidden layer exists in registers only."""

import triton
import triton.language as tl

from ...common.triton_matmul import branch_epilogue, remaining
from ...common.triton_primitives import dot, rounded
from .gelu import gelu
from .primitives import load_matrix, remaining_units


@triton.jit(do_not_specialize=["num_rows"])
def forward_kernel(
    x_ptr,
    w1_ptr,
    b1_ptr,
    w2_ptr,
    b2_ptr,
    scale_ptr,
    residual_ptr,
    out_ptr,
    num_rows,
    PRECISION: tl.constexpr,
    CHANNELS: tl.constexpr,
    HIDDEN: tl.constexpr,
    OUT_CHANNELS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """out of one tile of tokens: x stays, hidden tiles pass by."""
    row = tl.cast(tl.program_id(0), tl.int64) * BLOCK_T
    left_rows = remaining(row, num_rows, BLOCK_T)
    x = load_matrix(x_ptr + row * CHANNELS, CHANNELS, left_rows, CHANNELS, BLOCK_T, BLOCK_C)
    branch = tl.zeros([BLOCK_T, BLOCK_O], tl.float32)
    for start in range(0, HIDDEN, BLOCK_H):
        left = remaining_units(start, HIDDEN, BLOCK_H)
        w1 = load_matrix(w1_ptr + start * CHANNELS, CHANNELS, left, CHANNELS, BLOCK_H, BLOCK_C)
        w2 = load_matrix(w2_ptr + start, HIDDEN, OUT_CHANNELS, left, BLOCK_O, BLOCK_H)
        units = tl.arange(0, BLOCK_H)
        b1 = tl.load(b1_ptr + start + units, mask=units < left, other=0.0)
        h = dot(x, tl.trans(w1), tl.zeros([BLOCK_T, BLOCK_H], tl.float32), PRECISION) + b1[None, :]
        g = rounded(gelu(h, x.dtype), x.dtype)
        branch = dot(g, tl.trans(w2), branch, PRECISION)
    branch_epilogue(branch, b2_ptr, scale_ptr, residual_ptr, out_ptr, row, 0, num_rows, OUT_CHANNELS, BLOCK_T, BLOCK_O)
