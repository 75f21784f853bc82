# SPDX-License-Identifier: MIT
"""Backward of the MLP for narrow channels: the hidden layer is computed again, and its gradient never leaves the chip.

With dy = sample_scale · grad_out, h = x w1ᵀ + b1 and g = gelu(h)
    dh = (dy w2) ∘ gelu'(h)      grad_x = dh w1 (+ grad_out)      grad_w1 = dhᵀ x      grad_w2 = dyᵀ g
grad_x sums over hidden units and the weights' gradients over tokens, so there is a kernel for each.
"""

import triton
import triton.language as tl

from ...common.triton_matmul import load_scale, remaining
from ...common.triton_primitives import dot, rounded
from .gelu import gelu_and_derivative
from .primitives import load_matrix, remaining_units, store_matrix


@triton.jit(do_not_specialize=["num_rows"])
def backward_input_kernel(
    grad_out_ptr,
    x_ptr,
    w1_ptr,
    b1_ptr,
    w2_ptr,
    scale_ptr,
    grad_x_ptr,
    partial_b2_ptr,
    num_rows,
    RESIDUAL: tl.constexpr,
    PRECISION: tl.constexpr,
    CHANNELS: tl.constexpr,
    HIDDEN: tl.constexpr,
    OUT_CHANNELS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """grad_x of one tile of tokens, and its share Σ dy of grad_b2 in partial_b2 (tiles, C_out)."""
    row = tl.cast(tl.program_id(0), tl.int64) * BLOCK_T
    left_rows = remaining(row, num_rows, BLOCK_T)
    x = load_matrix(x_ptr + row * CHANNELS, CHANNELS, left_rows, CHANNELS, BLOCK_T, BLOCK_C)
    dy = load_matrix(grad_out_ptr + row * OUT_CHANNELS, OUT_CHANNELS, left_rows, OUT_CHANNELS, BLOCK_T, BLOCK_O)
    exact_dy = dy.to(tl.float32)
    if scale_ptr is not None:
        exact_dy *= load_scale(scale_ptr, row, num_rows, BLOCK_T)[:, None]
        dy = rounded(exact_dy, dy.dtype)
    out_channels = tl.arange(0, BLOCK_O)
    partial_ptr = partial_b2_ptr + tl.cast(tl.program_id(0), tl.int64) * OUT_CHANNELS
    tl.store(partial_ptr + out_channels, tl.sum(exact_dy, 0), mask=out_channels < OUT_CHANNELS)

    grad_x = tl.zeros([BLOCK_T, BLOCK_C], tl.float32)
    for start in range(0, HIDDEN, BLOCK_H):
        left = remaining_units(start, HIDDEN, BLOCK_H)
        w1 = load_matrix(w1_ptr + start * CHANNELS, CHANNELS, left, CHANNELS, BLOCK_H, BLOCK_C)
        w2 = load_matrix(w2_ptr + start, HIDDEN, OUT_CHANNELS, left, BLOCK_O, BLOCK_H)
        units = tl.arange(0, BLOCK_H)
        b1 = tl.load(b1_ptr + start + units, mask=units < left, other=0.0)
        zeros = tl.zeros([BLOCK_T, BLOCK_H], tl.float32)
        h = dot(x, tl.trans(w1), zeros, PRECISION) + b1[None, :]
        _, derivative = gelu_and_derivative(h, x.dtype)
        dh = dot(dy, w2, zeros, PRECISION) * derivative
        grad_x = dot(rounded(dh, x.dtype), w1, grad_x, PRECISION)
    if RESIDUAL:
        skip = load_matrix(grad_out_ptr + row * CHANNELS, CHANNELS, left_rows, CHANNELS, BLOCK_T, BLOCK_C)
        grad_x += skip.to(tl.float32)
    store_matrix(
        grad_x_ptr + row * CHANNELS,
        rounded(grad_x, grad_x_ptr.dtype.element_ty),
        CHANNELS,
        left_rows,
        CHANNELS,
        BLOCK_T,
        BLOCK_C,
    )


# num_rows is specialized: masks of 16 tokens at a time save a twentieth of the instructions of the loop.
@triton.jit(do_not_specialize=["num_parts"])
def backward_weight_kernel(
    grad_out_ptr,
    x_ptr,
    w1_ptr,
    b1_ptr,
    w2_ptr,
    scale_ptr,
    partial_ptr,
    num_rows,
    num_parts,
    PRECISION: tl.constexpr,
    CHANNELS: tl.constexpr,
    HIDDEN: tl.constexpr,
    OUT_CHANNELS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """One part's share of grad_w1, grad_w2 and grad_b1 for one tile of hidden units.

    partial is (num_parts, HIDDEN * (CHANNELS + OUT_CHANNELS + 1)) float32: w1, w2 and b1 in a row. A part takes every
    num_parts-th tile of tokens; the programs of a part, one for each hidden tile, read it at about the same time.

    Hidden tiles are held as (units, tokens): they are then left operands, which stay in registers.
    """
    hidden_tiles = tl.cdiv(HIDDEN, BLOCK_H)
    program = tl.program_id(0)
    part = program // hidden_tiles
    start = program % hidden_tiles * BLOCK_H
    left = remaining_units(start, HIDDEN, BLOCK_H)
    w1 = load_matrix(w1_ptr + start * CHANNELS, CHANNELS, left, CHANNELS, BLOCK_H, BLOCK_C)
    w2 = tl.trans(load_matrix(w2_ptr + start, HIDDEN, OUT_CHANNELS, left, BLOCK_O, BLOCK_H))
    units = tl.arange(0, BLOCK_H)
    b1 = tl.load(b1_ptr + start + units, mask=units < left, other=0.0)

    grad_w1 = tl.zeros([BLOCK_H, BLOCK_C], tl.float32)
    grad_w2 = tl.zeros([BLOCK_H, BLOCK_O], tl.float32)
    grad_b1 = tl.zeros([BLOCK_H], tl.float32)
    for tile in range(part, tl.cdiv(num_rows, BLOCK_T), num_parts):
        row = tl.cast(tile, tl.int64) * BLOCK_T
        left_rows = remaining(row, num_rows, BLOCK_T)
        x = load_matrix(x_ptr + row * CHANNELS, CHANNELS, left_rows, CHANNELS, BLOCK_T, BLOCK_C)
        dy = load_matrix(grad_out_ptr + row * OUT_CHANNELS, OUT_CHANNELS, left_rows, OUT_CHANNELS, BLOCK_T, BLOCK_O)
        zeros = tl.zeros([BLOCK_H, BLOCK_T], tl.float32)
        # No bias where there is no token: as large as it may be, its product with dy = 0 could be NaN.
        bias = tl.where((tl.arange(0, BLOCK_T) < left_rows)[None, :], b1[:, None], 0.0)
        h = dot(w1, tl.trans(x), bias, PRECISION)
        g, derivative = gelu_and_derivative(h, x.dtype)
        dh = dot(w2, tl.trans(dy), zeros, PRECISION) * derivative
        if scale_ptr is not None:
            scale = load_scale(scale_ptr, row, num_rows, BLOCK_T)[None, :]
            g *= scale
            dh *= scale
        grad_w2 = dot(rounded(g, x.dtype), dy, grad_w2, PRECISION)
        grad_b1 += tl.sum(dh, 1)
        grad_w1 = dot(rounded(dh, x.dtype), x, grad_w1, PRECISION)

    partial_ptr += tl.cast(part, tl.int64) * HIDDEN * (CHANNELS + OUT_CHANNELS + 1)
    store_matrix(partial_ptr + start * CHANNELS, grad_w1, CHANNELS, left, CHANNELS, BLOCK_H, BLOCK_C)
    partial_ptr += HIDDEN * CHANNELS
    store_matrix(partial_ptr + start, tl.trans(grad_w2), HIDDEN, OUT_CHANNELS, left, BLOCK_O, BLOCK_H)
    partial_ptr += HIDDEN * OUT_CHANNELS
    tl.store(partial_ptr + start + units, grad_b1, mask=units < left)
