# SPDX-License-Identifier: MIT
"""Forward kernels of the mix: whole softmax rows on chip, or online softmax over key tiles.

Both compute   out_i = alpha Σ_j P_ij v_j + Σ_j affinity_ij v_j + Σ_taps w_tap v_(i+tap) + bias
               logsumexp_i = log2 Σ_j exp(scale q_i·k_j),   P_ij = 2^(scale/ln(2) q_i·k_j - logsumexp_i)
for one block of queries of one head. The static terms come after the softmax is normalized and are added
to what it gave, so neither alpha nor the softmax sum touches them.
"""

import triton
import triton.language as tl

from ...common.triton_primitives import dot, rounded
from .primitives import (
    add_local,
    head_of,
    head_of_contiguous,
    load_affinity,
    load_tokens,
    locate,
    store_tokens,
)


@triton.jit
def add_dense(
    accumulator,
    v_head,
    affinity_head,
    first_query,
    n,
    stride_n,
    PRECISION: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """accumulator[i] += Σ_j affinity[i, j] v[j], in v's precision; at most 32 keys at a time for registers."""
    TILE: tl.constexpr = 32 if BLOCK_N > 32 else BLOCK_N
    for start in range(0, n, TILE):
        v = load_tokens(v_head, start, n, stride_n, HEAD_DIM, TILE, BLOCK_D)
        affinity = load_affinity(affinity_head, first_query, start, n, BLOCK_M, TILE)
        accumulator = dot(rounded(affinity, v.dtype), v, accumulator, PRECISION)
    return accumulator


@triton.jit
def epilogue(
    accumulator,
    v_head,
    taps_ptr,
    bias_ptr,
    affinity_ptr,
    out_ptr,
    batch,
    head,
    first_query,
    n,
    num_heads,
    height,
    width,
    stride_n,
    KERNEL_H: tl.constexpr,
    KERNEL_W: tl.constexpr,
    PRECISION: tl.constexpr,
    UNIT: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Add the static terms to alpha · P v and write the result."""
    if affinity_ptr is not None:
        affinity_head = affinity_ptr + head * n * n
        accumulator = add_dense(
            accumulator, v_head, affinity_head, first_query, n, stride_n, PRECISION, HEAD_DIM, BLOCK_D, BLOCK_M, BLOCK_N
        )
    if bias_ptr is not None:
        channels = tl.arange(0, BLOCK_D)
        bias = tl.load(bias_ptr + head * HEAD_DIM + channels, mask=channels < HEAD_DIM, other=0.0)
        accumulator += bias[None, :]
    if taps_ptr is not None:
        accumulator = add_local(
            accumulator,
            v_head,
            taps_ptr,
            head,
            first_query,
            height,
            width,
            stride_n,
            num_heads,
            KERNEL_H,
            KERNEL_W,
            False,
            HEAD_DIM,
            BLOCK_M,
            BLOCK_D,
        )
    out_head = head_of_contiguous(out_ptr, batch, head, n, num_heads, HEAD_DIM)
    store_tokens(out_head, accumulator, first_query, n, num_heads * HEAD_DIM, HEAD_DIM, BLOCK_M, BLOCK_D)


@triton.jit
def load_queries(
    q_ptr,
    strides,
    batch,
    head,
    first_query,
    n,
    SIGN: tl.constexpr,
    UNIT: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """A block of queries times SIGN, that of the scale.

    With a positive scale the largest product is the largest score, so that scale and maximum enter the exponent in one
    multiply-add.
    """
    q_head, stride = head_of(q_ptr, strides, batch, head, UNIT)
    q = load_tokens(q_head, first_query, n, stride, HEAD_DIM, BLOCK_M, BLOCK_D)
    if SIGN != 1:
        q = rounded(SIGN * q.to(tl.float32), q.dtype)
    return q


@triton.jit
def store_logsumexp(logsumexp_ptr, row_max, row_sum, batch, head, first_query, n, num_heads, BLOCK_M: tl.constexpr):
    """Write the log2 of the softmax sums, of weights relative to 2^row_max, to a head's row of (B, M, N).

    Not the natural log: a sum far below the rounding of row_max then leaves row_max as it is, and recomputed weights
    are no more than 1.
    """
    queries = tl.arange(0, BLOCK_M)
    first = logsumexp_ptr + (batch * num_heads + head) * n + first_query
    tl.store(first + queries, row_max + tl.log2(row_sum), mask=queries < n - first_query)


@triton.jit
def forward_row_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    alpha_ptr,
    taps_ptr,
    bias_ptr,
    affinity_ptr,
    out_ptr,
    logsumexp_ptr,
    q_strides,
    k_strides,
    v_strides,
    n,
    num_heads,
    height,
    width,
    scale_log2,
    KERNEL_H: tl.constexpr,
    KERNEL_W: tl.constexpr,
    PRECISION: tl.constexpr,
    SIGN: tl.constexpr,
    UNIT: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    TAIL: tl.constexpr,
):
    """One block of queries whose softmax rows fit on chip (n <= BLOCK_N): one pass, no running maximum.

    TAIL is there because all launches of the mix take the same constants.
    """
    tile, head, batch = locate(tl.cdiv(n, BLOCK_M), num_heads)
    first_query = tile * BLOCK_M
    k_head, k_stride = head_of(k_ptr, k_strides, batch, head, UNIT)
    v_head, v_stride = head_of(v_ptr, v_strides, batch, head, UNIT)

    q = load_queries(q_ptr, q_strides, batch, head, first_query, n, SIGN, UNIT, HEAD_DIM, BLOCK_M, BLOCK_D)
    k = load_tokens(k_head, 0, n, k_stride, HEAD_DIM, BLOCK_N, BLOCK_D)
    v = load_tokens(v_head, 0, n, v_stride, HEAD_DIM, BLOCK_N, BLOCK_D)
    scores = dot(q, tl.trans(k), tl.zeros([BLOCK_M, BLOCK_N], tl.float32), PRECISION)
    scores = tl.where((tl.arange(0, BLOCK_N) < n)[None, :], scores, float("-inf"))
    row_max = tl.max(scores, 1) * scale_log2
    weights = tl.exp2(scores * scale_log2 - row_max[:, None])
    row_sum = tl.sum(weights, 1)
    store_logsumexp(logsumexp_ptr, row_max, row_sum, batch, head, first_query, n, num_heads, BLOCK_M)

    accumulator = dot(rounded(weights, v.dtype), v, tl.zeros([BLOCK_M, BLOCK_D], tl.float32), PRECISION)
    accumulator *= (tl.load(alpha_ptr + head) / row_sum)[:, None]
    epilogue(
        accumulator,
        v_head,
        taps_ptr,
        bias_ptr,
        affinity_ptr,
        out_ptr,
        batch,
        head,
        first_query,
        n,
        num_heads,
        height,
        width,
        v_stride,
        KERNEL_H,
        KERNEL_W,
        PRECISION,
        UNIT,
        HEAD_DIM,
        BLOCK_D,
        BLOCK_M,
        BLOCK_N,
    )


@triton.jit
def attend(
    accumulator,
    row_max,
    row_sum,
    q,
    k_head,
    v_head,
    k_stride,
    v_stride,
    start,
    n,
    scale_log2,
    PRECISION: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    KEYS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """One step of the online softmax: the keys from `start` on, of which all exist where WHOLE."""
    k = load_tokens(k_head, start, n, k_stride, HEAD_DIM, KEYS, BLOCK_D, WHOLE)
    scores = dot(q, tl.trans(k), tl.zeros([BLOCK_M, KEYS], tl.float32), PRECISION)
    if not WHOLE:
        scores = tl.where((tl.arange(0, KEYS) < n - start)[None, :], scores, float("-inf"))
    new_max = tl.maximum(row_max, tl.max(scores, 1) * scale_log2)
    # With nothing but -inf so far, subtract 0: each weight is then 0 and not NaN.
    shift = tl.where(new_max == float("-inf"), 0.0, new_max)
    weights = tl.exp2(scores * scale_log2 - shift[:, None])
    correction = tl.exp2(row_max - shift)
    row_sum = row_sum * correction + tl.sum(weights, 1)
    v = load_tokens(v_head, start, n, v_stride, HEAD_DIM, KEYS, BLOCK_D, WHOLE)
    accumulator = dot(rounded(weights, v.dtype), v, accumulator * correction[:, None], PRECISION)
    return accumulator, new_max, row_sum


@triton.jit
def forward_tiled_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    alpha_ptr,
    taps_ptr,
    bias_ptr,
    affinity_ptr,
    out_ptr,
    logsumexp_ptr,
    q_strides,
    k_strides,
    v_strides,
    n,
    num_heads,
    height,
    width,
    scale_log2,
    KERNEL_H: tl.constexpr,
    KERNEL_W: tl.constexpr,
    PRECISION: tl.constexpr,
    SIGN: tl.constexpr,
    UNIT: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    TAIL: tl.constexpr,
):
    """One block of queries against all key tiles, online softmax; the keys that fill no tile have one of TAIL."""
    tile, head, batch = locate(tl.cdiv(n, BLOCK_M), num_heads)
    first_query = tile * BLOCK_M
    k_head, k_stride = head_of(k_ptr, k_strides, batch, head, UNIT)
    v_head, v_stride = head_of(v_ptr, v_strides, batch, head, UNIT)

    q = load_queries(q_ptr, q_strides, batch, head, first_query, n, SIGN, UNIT, HEAD_DIM, BLOCK_M, BLOCK_D)
    accumulator = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    row_max = tl.full([BLOCK_M], float("-inf"), tl.float32)
    row_sum = tl.zeros([BLOCK_M], tl.float32)
    whole = n // BLOCK_N * BLOCK_N
    for start in range(0, whole, BLOCK_N):
        accumulator, row_max, row_sum = attend(
            accumulator,
            row_max,
            row_sum,
            q,
            k_head,
            v_head,
            k_stride,
            v_stride,
            start,
            n,
            scale_log2,
            PRECISION,
            HEAD_DIM,
            BLOCK_M,
            BLOCK_N,
            BLOCK_D,
            True,
        )
    if TAIL:
        for start in range(whole, n, TAIL):  # one step, as a loop: outside of one, loads are not pipelined
            accumulator, row_max, row_sum = attend(
                accumulator,
                row_max,
                row_sum,
                q,
                k_head,
                v_head,
                k_stride,
                v_stride,
                start,
                n,
                scale_log2,
                PRECISION,
                HEAD_DIM,
                BLOCK_M,
                TAIL,
                BLOCK_D,
                False,
            )
    store_logsumexp(logsumexp_ptr, row_max, row_sum, batch, head, first_query, n, num_heads, BLOCK_M)

    accumulator *= (tl.load(alpha_ptr + head) / row_sum)[:, None]
    epilogue(
        accumulator,
        v_head,
        taps_ptr,
        bias_ptr,
        affinity_ptr,
        out_ptr,
        batch,
        head,
        first_query,
        n,
        num_heads,
        height,
        width,
        v_stride,
        KERNEL_H,
        KERNEL_W,
        PRECISION,
        UNIT,
        HEAD_DIM,
        BLOCK_D,
        BLOCK_M,
        BLOCK_N,
    )
