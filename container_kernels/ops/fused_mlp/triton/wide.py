# SPDX-License-Identifier: MIT
"""The hidden layer of the MLP for wide channels, in memory: activation and gradient are epilogues of its products."""

import triton
import triton.language as tl

from ...common.triton_matmul import load_scale, locate_tile, product, remaining
from ...common.triton_primitives import rounded
from .gelu import gelu, gelu_and_derivative
from .primitives import store_matrix


@triton.jit(do_not_specialize=["num_rows"])
def hidden_kernel(
    x_ptr,
    w1_ptr,
    b1_ptr,
    g_ptr,
    num_rows,
    channels,
    hidden,
    UNIT: tl.constexpr,
    PRECISION: tl.constexpr,
    EVEN_DEPTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One tile of g = gelu(x w1ᵀ + b1); channels and hidden in units of UNIT elements."""
    channels *= UNIT
    hidden *= UNIT
    row, column = locate_tile(hidden, BLOCK_M, BLOCK_N)
    left_rows, left_columns = remaining(row, num_rows, BLOCK_M), remaining(column, hidden, BLOCK_N)
    h = product(
        x_ptr,
        w1_ptr,
        row,
        column,
        num_rows,
        hidden,
        channels,
        False,
        PRECISION,
        EVEN_DEPTH,
        BLOCK_M,
        BLOCK_N,
        BLOCK_K,
    )
    units = tl.arange(0, BLOCK_N)
    h += tl.load(b1_ptr + column + units, mask=units < left_columns, other=0.0)[None, :]
    dtype: tl.constexpr = g_ptr.dtype.element_ty
    g = rounded(gelu(h, dtype), dtype)
    store_matrix(g_ptr + row * hidden + column, g, hidden, left_rows, left_columns, BLOCK_M, BLOCK_N)


@triton.jit(do_not_specialize=["num_rows"])
def hidden_gradient_kernel(
    grad_out_ptr,
    x_ptr,
    w1_ptr,
    b1_ptr,
    w2_ptr,
    scale_ptr,
    g_ptr,
    dh_ptr,
    partial_b1_ptr,
    num_rows,
    channels,
    hidden,
    out_channels,
    UNIT: tl.constexpr,
    PRECISION: tl.constexpr,
    EVEN_DEPTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One tile of sample_scale · g and of dh = sample_scale · (grad_out w2) ∘ gelu'(h), from both products at once.

    partial_b1 (row tiles, hidden) float32 is the tile's share Σ dh of grad_b1. channels, hidden and out_channels come
    in units of UNIT elements.
    """
    channels *= UNIT
    hidden *= UNIT
    out_channels *= UNIT
    row, column = locate_tile(hidden, BLOCK_M, BLOCK_N)
    left_rows, left_columns = remaining(row, num_rows, BLOCK_M), remaining(column, hidden, BLOCK_N)
    h = product(
        x_ptr,
        w1_ptr,
        row,
        column,
        num_rows,
        hidden,
        channels,
        False,
        PRECISION,
        EVEN_DEPTH,
        BLOCK_M,
        BLOCK_N,
        BLOCK_K,
    )
    dg = product(
        grad_out_ptr,
        w2_ptr,
        row,
        column,
        num_rows,
        hidden,
        out_channels,
        True,
        PRECISION,
        EVEN_DEPTH,
        BLOCK_M,
        BLOCK_N,
        BLOCK_K,
    )
    units = tl.arange(0, BLOCK_N)
    h += tl.load(b1_ptr + column + units, mask=units < left_columns, other=0.0)[None, :]
    dtype: tl.constexpr = g_ptr.dtype.element_ty
    g, derivative = gelu_and_derivative(h, dtype)
    dh = dg * derivative
    if scale_ptr is not None:
        scale = load_scale(scale_ptr, row, num_rows, BLOCK_M)[:, None]
        g *= scale
        dh *= scale
    offset = row * hidden + column
    store_matrix(g_ptr + offset, rounded(g, dtype), hidden, left_rows, left_columns, BLOCK_M, BLOCK_N)
    store_matrix(dh_ptr + offset, rounded(dh, dtype), hidden, left_rows, left_columns, BLOCK_M, BLOCK_N)
    # Rows beyond the last repeat it; they are not tokens.
    dh = tl.where((tl.arange(0, BLOCK_M) < left_rows)[:, None], dh, 0.0)
    partial_ptr = partial_b1_ptr + row // BLOCK_M * hidden + column
    tl.store(partial_ptr + units, tl.sum(dh, 0), mask=units < left_columns)
