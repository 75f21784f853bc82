# SPDX-License-Identifier: MIT
"""Forward kernels of the mix: whole softmax rows on chip, or online softmax over key tiles.

Both compute   out_i = alpha Σ_j P_ij v_j + Σ_j affinity_ij v_j + Σ_taps w_tap v_(i+tap) + bias
               logsumexp_i = log Σ_j exp(scale q_i·k_j),   P_ij = exp(scale q_i·k_j - logsumexp_i)
for one block of queries of one head. The static terms come after the softmax is normalized and enter the
same accumulator, so neither alpha nor the softmax sum touches them.
"""

import triton
import triton.language as tl

from ...triton_primitives import dot, rounded
from .primitives import (
    LN2,
    LOG2E,
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
    queries,
    n,
    stride_n,
    PRECISION: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """accumulator[i] += Σ_j affinity[i, j] v[j], in v's precision; at most 32 keys at a time for registers."""
    TILE: tl.constexpr = 32 if BLOCK_N > 32 else BLOCK_N
    for start in range(0, n, TILE):
        keys = start + tl.arange(0, TILE)
        v = load_tokens(v_head, keys, n, stride_n, HEAD_DIM, BLOCK_D)
        affinity = load_affinity(affinity_head, queries, keys, n)
        accumulator = dot(rounded(affinity, v.dtype), v, accumulator, PRECISION)
    return accumulator


@triton.jit
def finish(
    accumulator,
    v_head,
    taps_ptr,
    bias_ptr,
    affinity_ptr,
    out_ptr,
    batch,
    head,
    queries,
    n,
    num_heads,
    height,
    width,
    stride_n,
    KERNEL_H: tl.constexpr,
    KERNEL_W: tl.constexpr,
    PRECISION: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Add the static terms to alpha · P v and write the result."""
    if affinity_ptr is not None:
        affinity_head = affinity_ptr + head * n * n
        accumulator = add_dense(
            accumulator, v_head, affinity_head, queries, n, stride_n, PRECISION, HEAD_DIM, BLOCK_D, BLOCK_N
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
            queries,
            height,
            width,
            stride_n,
            num_heads,
            KERNEL_H,
            KERNEL_W,
            False,
            HEAD_DIM,
            BLOCK_D,
        )
    out_head = head_of_contiguous(out_ptr, batch, head, n, num_heads, HEAD_DIM)
    store_tokens(out_head, accumulator, queries, n, num_heads * HEAD_DIM, HEAD_DIM, BLOCK_D)


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
    scale,
    KERNEL_H: tl.constexpr,
    KERNEL_W: tl.constexpr,
    PRECISION: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """One block of queries whose softmax rows fit on chip (n <= BLOCK_N): one pass, no running maximum."""
    tile, head, batch = locate(tl.cdiv(n, BLOCK_M), num_heads)
    queries = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    keys = tl.arange(0, BLOCK_N)
    v_head = head_of(v_ptr, v_strides, batch, head)

    q = load_tokens(head_of(q_ptr, q_strides, batch, head), queries, n, q_strides[1], HEAD_DIM, BLOCK_D)
    k = load_tokens(head_of(k_ptr, k_strides, batch, head), keys, n, k_strides[1], HEAD_DIM, BLOCK_D)
    v = load_tokens(v_head, keys, n, v_strides[1], HEAD_DIM, BLOCK_D)
    zeros = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    scores = dot(q, tl.trans(k), zeros, PRECISION) * (scale * LOG2E)
    scores = tl.where(keys[None, :] < n, scores, float("-inf"))
    row_max = tl.max(scores, 1)
    weights = tl.exp2(scores - row_max[:, None])
    row_sum = tl.sum(weights, 1)
    tl.store(
        logsumexp_ptr + (batch * num_heads + head) * n + queries,
        (row_max + tl.log2(row_sum)) * LN2,
        mask=queries < n,
    )

    accumulator = dot(rounded(weights, v.dtype), v, tl.zeros([BLOCK_M, BLOCK_D], tl.float32), PRECISION)
    accumulator *= (tl.load(alpha_ptr + head) / row_sum)[:, None]
    finish(
        accumulator,
        v_head,
        taps_ptr,
        bias_ptr,
        affinity_ptr,
        out_ptr,
        batch,
        head,
        queries,
        n,
        num_heads,
        height,
        width,
        v_strides[1],
        KERNEL_H,
        KERNEL_W,
        PRECISION,
        HEAD_DIM,
        BLOCK_D,
        BLOCK_N,
    )


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
    scale,
    KERNEL_H: tl.constexpr,
    KERNEL_W: tl.constexpr,
    PRECISION: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """One block of queries against all key tiles, online softmax; only the last, partial tile is masked."""
    tile, head, batch = locate(tl.cdiv(n, BLOCK_M), num_heads)
    queries = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    k_head = head_of(k_ptr, k_strides, batch, head)
    v_head = head_of(v_ptr, v_strides, batch, head)

    q = load_tokens(head_of(q_ptr, q_strides, batch, head), queries, n, q_strides[1], HEAD_DIM, BLOCK_D)
    accumulator = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    row_max = tl.full([BLOCK_M], float("-inf"), tl.float32)
    row_sum = tl.zeros([BLOCK_M], tl.float32)
    for start in range(0, n, BLOCK_N):
        keys = start + tl.arange(0, BLOCK_N)
        k = load_tokens(k_head, keys, n, k_strides[1], HEAD_DIM, BLOCK_D)
        zeros = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        scores = dot(q, tl.trans(k), zeros, PRECISION) * (scale * LOG2E)
        if start + BLOCK_N > n:
            scores = tl.where(keys[None, :] < n, scores, float("-inf"))
        new_max = tl.maximum(row_max, tl.max(scores, 1))
        weights = tl.exp2(scores - new_max[:, None])
        correction = tl.exp2(row_max - new_max)
        row_max = new_max
        row_sum = row_sum * correction + tl.sum(weights, 1)
        v = load_tokens(v_head, keys, n, v_strides[1], HEAD_DIM, BLOCK_D)
        accumulator = dot(rounded(weights, v.dtype), v, accumulator * correction[:, None], PRECISION)
    tl.store(
        logsumexp_ptr + (batch * num_heads + head) * n + queries,
        (row_max + tl.log2(row_sum)) * LN2,
        mask=queries < n,
    )

    accumulator *= (tl.load(alpha_ptr + head) / row_sum)[:, None]
    finish(
        accumulator,
        v_head,
        taps_ptr,
        bias_ptr,
        affinity_ptr,
        out_ptr,
        batch,
        head,
        queries,
        n,
        num_heads,
        height,
        width,
        v_strides[1],
        KERNEL_H,
        KERNEL_W,
        PRECISION,
        HEAD_DIM,
        BLOCK_D,
        BLOCK_N,
    )
