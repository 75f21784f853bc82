# SPDX-License-Identifier: MIT
"""Gradients of locations and weights: as the forward, with products of pixels and grad_out in the place of the sum."""

import triton
import triton.language as tl

from ...common.triton_primitives import rounded
from .primitives import level_size, load_corners, load_point, locate, query_rows


@triton.jit(do_not_specialize=["stride_b", "stride_s", "stride_m", "num_queries", "num_heads"])
def backward_sampling_kernel(
    grad_out_ptr,
    value_ptr,
    locations_ptr,
    weights_ptr,
    grad_locations_ptr,
    grad_weights_ptr,
    levels,
    stride_b,
    stride_s,
    stride_m,
    num_queries,
    num_heads,
    LEVELS: tl.constexpr,
    POINTS: tl.constexpr,
    STEP: tl.constexpr,
    BLOCK_P: tl.constexpr,
    UNIT: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_Q: tl.constexpr,
):
    """grad_locations and grad_weights, contiguous, of what the forward has; grad_out (B, Q, M, D), contiguous.

    Of one channel vector g and the corners v, all comes from the four numbers g · v. STEP points, in BLOCK_P places,
    are written together: one by one, each would be a memory transaction of 32 bytes for 4 or 8 of them.
    """
    block, head, batch = locate(tl.cdiv(num_queries, BLOCK_Q), num_heads)
    rows, exists = query_rows(block, head, batch, num_queries, num_heads, BLOCK_Q)
    channels = tl.arange(0, BLOCK_D)[None, :]
    mask = exists[:, None] & (channels < HEAD_DIM)
    grad_out = tl.load(grad_out_ptr + rows[:, None] * HEAD_DIM + channels, mask=mask, other=0.0).to(tl.float32)
    level_ptr = value_ptr + (batch * stride_b + head * stride_m) * UNIT
    places = tl.arange(0, BLOCK_P)[None, :]
    coordinates = tl.arange(0, 2 * BLOCK_P)[None, :]
    for level in range(0, LEVELS):
        height, width = level_size(levels, level, LEVELS)
        for first in range(0, POINTS, STEP):
            grad_locations = tl.zeros([BLOCK_Q, 2 * BLOCK_P], tl.float32)
            grad_weights = tl.zeros([BLOCK_Q, BLOCK_P], tl.float32)
            for index in tl.static_range(STEP):
                column, row, point, there = load_point(
                    locations_ptr, rows, exists, level, first + index, height, width, LEVELS, POINTS, STEP
                )
                weight = tl.load(weights_ptr + point, mask=there, other=0.0).to(tl.float32)
                tiles, right, down = load_corners(
                    level_ptr, column, row, height, width, stride_s, UNIT, HEAD_DIM, BLOCK_D
                )
                products = ()
                for corner in tl.static_range(4):
                    products += (tl.sum(grad_out * tiles[corner], 1),)
                upper = products[0] + right * (products[1] - products[0])
                lower = products[2] + right * (products[3] - products[2])
                across = products[1] - products[0] + down * (products[3] - products[2] - products[1] + products[0])
                grad_x = weight * width * across
                grad_y = weight * height * (lower - upper)
                grad_weight = upper + down * (lower - upper)
                grad_weights = tl.where(places == index, grad_weight[:, None], grad_weights)
                grad_locations = tl.where(coordinates == 2 * index, grad_x[:, None], grad_locations)
                grad_locations = tl.where(coordinates == 2 * index + 1, grad_y[:, None], grad_locations)
            start = rows[:, None] * (LEVELS * POINTS) + level * POINTS + first
            written = exists[:, None] & (places < STEP) & (places < POINTS - first)
            grad_weights = rounded(grad_weights, grad_weights_ptr.dtype.element_ty)
            tl.store(grad_weights_ptr + start + places, grad_weights, mask=written)
            of_coordinates = exists[:, None] & (coordinates < 2 * STEP) & (coordinates < 2 * (POINTS - first))
            grad_locations = rounded(grad_locations, grad_locations_ptr.dtype.element_ty)
            tl.store(grad_locations_ptr + 2 * start + coordinates, grad_locations, mask=of_coordinates)
        level_ptr += (height * width).to(tl.int64) * stride_s * UNIT
