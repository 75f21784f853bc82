# SPDX-License-Identifier: MIT
"""Backward of the mix when a head's keys, values and their gradients fit on chip: one program per head.

q, k, v and grad_out are read once. With P recomputed from logsumexp, for each block of queries i
    dP_ij = grad_out_i·v_j     delta_i = Σ_j P_ij dP_ij     dS_ij = P_ij (dP_ij - delta_i)
    grad_q_i = alpha scale Σ_j dS_ij k_j      grad_k_j = alpha scale Σ_i dS_ij q_i
    grad_v_j = alpha Σ_i P_ij grad_out_i + Σ_i affinity_ij grad_out_i + Σ_taps w_tap grad_out_(j-tap)
    grad_alpha = Σ_i delta_i
Scores are held as (keys, queries): keys and values are then left operands, which live in registers spread
over the warps, and so do the two accumulators.
"""

import triton
import triton.language as tl

from ...common.triton_primitives import dot, rounded
from .primitives import (
    LN2,
    add_local,
    head_of,
    inverse_or_zero,
    load_affinity,
    load_queries_to_weigh,
    load_tokens,
    locate,
    no_weight_from,
    softmax_weights,
    store_tokens,
)


@triton.jit
def add_dense_transposed(
    accumulator,
    grad_out_head,
    affinity_head,
    first_key,
    n,
    stride_n,
    PRECISION: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """accumulator[j] += Σ_i affinity[i, j] grad_out[i], in grad_out's precision, 16 queries at a time for registers."""
    for start in range(0, n, 16):
        grad_out = load_tokens(grad_out_head, start, n, stride_n, HEAD_DIM, 16, BLOCK_D)
        affinity = load_affinity(affinity_head, start, first_key, n, 16, BLOCK_N)
        accumulator = dot(tl.trans(rounded(affinity, grad_out.dtype)), grad_out, accumulator, PRECISION)
    return accumulator


@triton.jit
def grad_v_epilogue(
    accumulator,
    grad_out_head,
    taps_ptr,
    affinity_ptr,
    grad_v_head,
    head,
    first_key,
    n,
    num_heads,
    height,
    width,
    stride_n,
    grad_v_stride_n,
    KERNEL_H: tl.constexpr,
    KERNEL_W: tl.constexpr,
    PRECISION: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Add the transposed static terms to alpha · Pᵀ grad_out and write grad_v."""
    if affinity_ptr is not None:
        affinity_head = affinity_ptr + head * n * n
        accumulator = add_dense_transposed(
            accumulator,
            grad_out_head,
            affinity_head,
            first_key,
            n,
            stride_n,
            PRECISION,
            HEAD_DIM,
            BLOCK_D,
            BLOCK_N,
        )
    if taps_ptr is not None:
        accumulator = add_local(
            accumulator,
            grad_out_head,
            taps_ptr,
            head,
            first_key,
            height,
            width,
            stride_n,
            num_heads,
            KERNEL_H,
            KERNEL_W,
            True,
            HEAD_DIM,
            BLOCK_N,
            BLOCK_D,
        )
    store_tokens(grad_v_head, accumulator, first_key, n, grad_v_stride_n, HEAD_DIM, BLOCK_N, BLOCK_D)


@triton.jit
def backward_row_kernel(
    grad_out_ptr,
    q_ptr,
    k_ptr,
    v_ptr,
    alpha_ptr,
    taps_ptr,
    affinity_ptr,
    logsumexp_ptr,
    grad_q_ptr,
    grad_k_ptr,
    grad_v_ptr,
    grad_alpha_ptr,
    grad_out_strides,
    q_strides,
    k_strides,
    v_strides,
    grad_strides,
    n,
    num_heads,
    height,
    width,
    scale_log2,
    KERNEL_H: tl.constexpr,
    KERNEL_W: tl.constexpr,
    PRECISION: tl.constexpr,
    UNIT: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    TAIL: tl.constexpr,
    NORMALIZE: tl.constexpr,
):
    """All gradients of one head of one image (n <= BLOCK_N); grad_alpha (B, M) holds this head's share.

    TAIL is there because all launches of the mix take the same constants. NORMALIZE: divide P by its own sum.
    """
    _, head, batch = locate(1, num_heads)
    q_head, q_stride = head_of(q_ptr, q_strides, batch, head, UNIT)
    k_head, k_stride = head_of(k_ptr, k_strides, batch, head, UNIT)
    v_head, v_stride = head_of(v_ptr, v_strides, batch, head, UNIT)
    grad_out_head, grad_out_stride = head_of(grad_out_ptr, grad_out_strides, batch, head, UNIT)
    grad_q_head, grad_stride = head_of(grad_q_ptr, grad_strides, batch, head, UNIT)
    grad_k_head, _ = head_of(grad_k_ptr, grad_strides, batch, head, UNIT)
    grad_v_head, _ = head_of(grad_v_ptr, grad_strides, batch, head, UNIT)
    logsumexp_head = logsumexp_ptr + (batch * num_heads + head) * n
    alpha = tl.load(alpha_ptr + head)
    scale = scale_log2 * LN2

    k = load_tokens(k_head, 0, n, k_stride, HEAD_DIM, BLOCK_N, BLOCK_D)
    v = load_tokens(v_head, 0, n, v_stride, HEAD_DIM, BLOCK_N, BLOCK_D)
    grad_k = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    grad_v = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    deltas = tl.zeros([BLOCK_M], tl.float32)
    most = no_weight_from(n, 0, BLOCK_N)[:, None] if NORMALIZE else 0.0
    for start in range(0, n, BLOCK_M):
        queries = start + tl.arange(0, BLOCK_M)
        q = load_queries_to_weigh(q_head, start, n, q_stride, HEAD_DIM, BLOCK_M, BLOCK_D)
        grad_out = load_tokens(grad_out_head, start, n, grad_out_stride, HEAD_DIM, BLOCK_M, BLOCK_D)
        logsumexp = tl.load(logsumexp_head + queries, mask=queries < n, other=float("inf"))
        zeros = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
        weights = softmax_weights(dot(k, tl.trans(q), zeros, PRECISION), logsumexp[None, :], scale_log2, most)
        if NORMALIZE:
            weights *= inverse_or_zero(tl.sum(weights, 0))[None, :]
        grad_v = dot(rounded(weights, grad_out.dtype), grad_out, grad_v, PRECISION)
        grad_weights = dot(v, tl.trans(grad_out), zeros, PRECISION)
        delta = tl.sum(weights * grad_weights, 0)
        deltas += delta
        grad_scores = rounded(weights * (grad_weights - delta[None, :]), k.dtype)
        grad_k = dot(grad_scores, q, grad_k, PRECISION)
        grad_q = dot(tl.trans(grad_scores), k, tl.zeros([BLOCK_M, BLOCK_D], tl.float32), PRECISION)
        store_tokens(grad_q_head, grad_q * (alpha * scale), start, n, grad_stride, HEAD_DIM, BLOCK_M, BLOCK_D)

    tl.store(grad_alpha_ptr + batch * num_heads + head, tl.sum(deltas, 0))
    store_tokens(grad_k_head, grad_k * (alpha * scale), 0, n, grad_stride, HEAD_DIM, BLOCK_N, BLOCK_D)
    grad_v_epilogue(
        grad_v * alpha,
        grad_out_head,
        taps_ptr,
        affinity_ptr,
        grad_v_head,
        head,
        0,
        n,
        num_heads,
        height,
        width,
        grad_out_stride,
        grad_stride,
        KERNEL_H,
        KERNEL_W,
        PRECISION,
        HEAD_DIM,
        BLOCK_D,
        BLOCK_N,
    )
