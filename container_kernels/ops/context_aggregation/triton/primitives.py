# SPDX-License-Identifier: MIT
"""Device helpers that the forward and backward kernels of the mix share.

Shapes: B batch, N tokens, M heads, D = HEAD_DIM channels of a head, padded to BLOCK_D on chip.
A `*_head` pointer points at one head of one image: token n of it starts at head + n * stride_n. A tile of tokens
starts at a 64-bit offset; offsets inside it have 32 bits, which halves the registers of its addresses.

Every token starts at a multiple of 16 bytes. Strides arrive in UNITs of so many elements: multiplied again in the
kernel, the compiler sees it, and loads 16 bytes at once (by itself it knows only of multiples of 16 elements).
"""

import triton
import triton.language as tl

from ...common.triton_primitives import rounded

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
def head_of(ptr, strides, batch, head, UNIT: tl.constexpr):
    """Start of one head in a (B, N, M, D) tensor with these (B, N, M) strides, and the stride of its tokens."""
    return ptr + (batch * strides[0] + head * strides[2]) * UNIT, strides[1] * UNIT


@triton.jit
def head_of_contiguous(ptr, batch, head, n, num_heads, HEAD_DIM: tl.constexpr):
    """Start of one head in a contiguous (B, N, M, D) tensor, whose tokens are num_heads * HEAD_DIM apart."""
    return ptr + (batch * n * num_heads + head) * HEAD_DIM


@triton.jit
def tile_pointers(head_ptr, start, stride_n, TOKENS: tl.constexpr, BLOCK_D: tl.constexpr):
    """(TOKENS, BLOCK_D) pointers to the tokens from `start` on."""
    offsets = tl.arange(0, TOKENS)[:, None] * stride_n + tl.arange(0, BLOCK_D)[None, :]
    return head_ptr + tl.cast(start, tl.int64) * stride_n + offsets


@triton.jit
def tile_mask(start, n, HEAD_DIM: tl.constexpr, TOKENS: tl.constexpr, BLOCK_D: tl.constexpr):
    """Which elements of a tile exist; without channel padding it is per row and loads stay 128 bits wide."""
    mask = (start + tl.arange(0, TOKENS) < n)[:, None]
    if HEAD_DIM != BLOCK_D:
        mask = mask & (tl.arange(0, BLOCK_D) < HEAD_DIM)[None, :]
    return mask


@triton.jit
def load_tokens(
    head_ptr,
    start,
    n,
    stride_n,
    HEAD_DIM: tl.constexpr,
    TOKENS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WHOLE: tl.constexpr = False,
):
    """The (TOKENS, BLOCK_D) tile of one head from token `start` on, zero where a token or a channel does not exist.

    WHOLE: all its tokens exist.
    """
    pointers = tile_pointers(head_ptr, start, stride_n, TOKENS, BLOCK_D)
    if WHOLE and HEAD_DIM == BLOCK_D:
        return tl.load(pointers)
    return tl.load(pointers, mask=tile_mask(start, n, HEAD_DIM, TOKENS, BLOCK_D), other=0.0)


@triton.jit
def load_queries_to_weigh(
    head_ptr,
    start,
    n,
    stride_n,
    HEAD_DIM: tl.constexpr,
    TOKENS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """As `load_tokens`, but where a token does not exist, the last one again: zeros times keys of -inf would be NaN.

    An infinite logsumexp takes the weights of such rows away.
    """
    tokens = tl.minimum(start + tl.arange(0, TOKENS), n - 1) - start
    channels = tl.arange(0, BLOCK_D)
    pointers = head_ptr + tl.cast(start, tl.int64) * stride_n + tokens[:, None] * stride_n + channels[None, :]
    if HEAD_DIM == BLOCK_D:
        return tl.load(pointers)
    return tl.load(pointers, mask=(channels < HEAD_DIM)[None, :], other=0.0)


@triton.jit
def store_tokens(
    head_ptr, tile, start, n, stride_n, HEAD_DIM: tl.constexpr, TOKENS: tl.constexpr, BLOCK_D: tl.constexpr
):
    """Write a (TOKENS, BLOCK_D) tile to one head from token `start` on, rounded to its dtype."""
    mask = tile_mask(start, n, HEAD_DIM, TOKENS, BLOCK_D)
    pointers = tile_pointers(head_ptr, start, stride_n, TOKENS, BLOCK_D)
    tl.store(pointers, rounded(tile, head_ptr.dtype.element_ty), mask=mask)


@triton.jit
def load_affinity(affinity_head, first_query, first_key, n, QUERIES: tl.constexpr, KEYS: tl.constexpr):
    """The (QUERIES, KEYS) tile of one head's dense (N, N) affinity, zero outside."""
    queries = tl.arange(0, QUERIES)[:, None]
    keys = tl.arange(0, KEYS)[None, :]
    first = affinity_head + tl.cast(first_query, tl.int64) * n + first_key
    mask = (queries < n - first_query) & (keys < n - first_key)
    return tl.load(first + queries * n + keys, mask=mask, other=0.0)


@triton.jit
def softmax_weights(products, logsumexp, scale_log2, most):
    """P of a tile from products q·k and the logsumexp of its rows.

    P is at most 1 by definition; rounding of large scores must not make it more, and absent keys, whose products are 0,
    must stay finite: what meets them are zeros. `most` is 0, or -inf for absent keys: then they have no weight at all.
    """
    exponents = products * scale_log2 - logsumexp
    return tl.exp2(tl.minimum(exponents, most, propagate_nan=tl.PropagateNan.ALL))


@triton.jit
def inverse_or_zero(weight_sum):
    """1 / Σ P; 0 where there is no weight: of tokens that do not exist."""
    return tl.where(weight_sum == 0.0, 0.0, 1 / weight_sum)


@triton.jit
def no_weight_from(n, first_key, KEYS: tl.constexpr):
    """`most` of `softmax_weights` for the keys from `first_key` on: -inf for those behind the last token."""
    return tl.where(first_key + tl.arange(0, KEYS) < n, 0.0, float("-inf"))


@triton.jit
def add_local(
    accumulator,
    image_head,
    taps_ptr,
    head,
    start,
    height,
    width,
    stride_n,
    num_heads,
    KERNEL_H: tl.constexpr,
    KERNEL_W: tl.constexpr,
    FLIPPED: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    TOKENS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """accumulator[t, c] += Σ_taps taps[tap, c] · image[t + dy * width + dx, c] for the row-major tokens t from `start`
    on, zero outside.

    taps is (KERNEL_H * KERNEL_W, M * D); FLIPPED reads it backwards, which transposes the operation. The image
    was just read for the products, so the window is gathered from L1/L2, one tap at a time, in loops that the compiler
    unrolls by no more than a row: enough independent loads to hide the cache.
    """
    channels = tl.arange(0, BLOCK_D)
    channel_mask = channels < HEAD_DIM
    tokens = start + tl.arange(0, TOKENS)
    row = tokens // width
    column = tokens % width
    pointers = tile_pointers(image_head, start, stride_n, TOKENS, BLOCK_D)
    taps_head = taps_ptr + head * HEAD_DIM + channels
    # A sum of its own, in the layout that pixels load in: added to the accumulator directly, which the matrix units
    # hold in theirs, every tap would go through shared memory.
    local = tl.zeros(accumulator.shape, tl.float32)
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
            local += pixels.to(tl.float32) * weights[None, :]
    return accumulator + local
