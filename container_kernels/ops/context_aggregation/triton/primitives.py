# SPDX-License-Identifier: MIT
"""The moves that the forward and backward kernels of the mix share.

Shapes: B batch, N tokens, M heads, D = HEAD_DIM channels of a head, padded to BLOCK_D on chip.
A `*_head` pointer points at one head of one image: token n of it starts at head + n * stride_n.
"""

import triton
import triton.language as tl

from ...triton_primitives import rounded

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def locate(tiles_per_head, num_heads):
    """(tile, head, batch) of this program; batch and head in int64, because they multiply strides.

    Tiles vary fastest: those which share a head's keys and values run together and find them in L2.
    """
    program = tl.program_id(0)
    head = (program // tiles_per_head) % num_heads
    batch = program // (tiles_per_head * num_heads)
    return program % tiles_per_head, head.to(tl.int64), batch.to(tl.int64)


@triton.jit
def head_of(ptr, strides, batch, head):
    """Start of one head in a (B, N, M, D) tensor with these (B, N, M) strides."""
    return ptr + batch * strides[0] + head * strides[2]


@triton.jit
def head_of_contiguous(ptr, batch, head, n, num_heads, HEAD_DIM: tl.constexpr):
    """Start of one head in a contiguous (B, N, M, D) tensor, whose tokens are num_heads * HEAD_DIM apart."""
    return ptr + (batch * n * num_heads + head) * HEAD_DIM


@triton.jit
def token_pointers(head_ptr, tokens, channels, stride_n):
    """(tokens, channels) pointers; the product is taken in int64, as N * stride_n may pass 2^31."""
    return head_ptr + tokens.to(tl.int64)[:, None] * stride_n + channels[None, :]


@triton.jit
def token_mask(tokens, channels, n, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """Which of (tokens, channels) exist; without channel padding it is per row and loads stay 128 bits wide."""
    mask = tokens[:, None] < n
    if HEAD_DIM != BLOCK_D:
        mask = mask & (channels[None, :] < HEAD_DIM)
    return mask


@triton.jit
def load_tokens(head_ptr, tokens, n, stride_n, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """The (tokens, BLOCK_D) tile of one head, zero where a token or a channel does not exist."""
    channels = tl.arange(0, BLOCK_D)
    mask = token_mask(tokens, channels, n, HEAD_DIM, BLOCK_D)
    return tl.load(token_pointers(head_ptr, tokens, channels, stride_n), mask=mask, other=0.0)


@triton.jit
def store_tokens(head_ptr, tile, tokens, n, stride_n, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """Write a (tokens, BLOCK_D) tile to one head, rounded to its dtype."""
    channels = tl.arange(0, BLOCK_D)
    mask = token_mask(tokens, channels, n, HEAD_DIM, BLOCK_D)
    pointers = token_pointers(head_ptr, tokens, channels, stride_n)
    tl.store(pointers, rounded(tile, head_ptr.dtype.element_ty), mask=mask)


@triton.jit
def load_affinity(affinity_head, queries, keys, n):
    """The (queries, keys) tile of one head's dense (N, N) affinity, zero outside."""
    pointers = affinity_head + queries.to(tl.int64)[:, None] * n + keys[None, :]
    return tl.load(pointers, mask=(queries[:, None] < n) & (keys[None, :] < n), other=0.0)


@triton.jit
def add_local(
    accumulator,
    image_head,
    taps_ptr,
    head,
    tokens,
    height,
    width,
    stride_n,
    num_heads,
    KERNEL_H: tl.constexpr,
    KERNEL_W: tl.constexpr,
    FLIPPED: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """accumulator[t, c] += Σ_taps taps[tap, c] · image[t + dy * width + dx, c] for row-major tokens, zero outside.

    taps is (KERNEL_H * KERNEL_W, M * D); FLIPPED reads it backwards, which transposes the operation. The image
    was just read for the products, so the window is gathered from L1/L2. One kernel row is unrolled: enough
    independent loads to hide the cache, without the code size of all taps.
    """
    channels = tl.arange(0, BLOCK_D)
    channel_mask = channels < HEAD_DIM
    row = tokens // width
    column = tokens % width
    pointers = token_pointers(image_head, tokens, channels, stride_n)
    taps_head = taps_ptr + head * HEAD_DIM + channels
    for tap_row in range(KERNEL_H):
        dy = tap_row - KERNEL_H // 2
        row_inside = (row + dy >= 0) & (row + dy < height)
        row_shift = tl.cast(dy, tl.int64) * width
        for tap_column in range(KERNEL_W):
            dx = tap_column - KERNEL_W // 2
            tap = tap_row * KERNEL_W + tap_column
            if FLIPPED:
                tap = KERNEL_H * KERNEL_W - 1 - tap
            inside = row_inside & (column + dx >= 0) & (column + dx < width)
            mask = inside[:, None] & channel_mask[None, :]
            pixels = tl.load(pointers + (row_shift + dx) * stride_n, mask=mask, other=0.0)
            weights = tl.load(taps_head + tap * num_heads * HEAD_DIM, mask=channel_mask, other=0.0)
            accumulator += pixels.to(tl.float32) * weights[None, :]
    return accumulator
