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

from ...triton_primitives import dot, rounded
from .primitives import (
    LOG2E,
    add_local,
    head_of,
    load_affinity,
    load_tokens,
    locate,
    store_tokens,
)


@triton.jit
def add_dense_transposed(
    accumulator,
    grad_out_head,
    affinity_head,
    keys,
    n,
    stride_n,
    PRECISION: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """accumulator[j] += Σ_i affinity[i, j] grad_out[i], in grad_out's precision, 16 queries at a time for registers."""
    for start in range(0, n, 16):
        queries = start + tl.arange(0, 16)
        grad_out = load_tokens(grad_out_head, queries, n, stride_n, HEAD_DIM, BLOCK_D)
        affinity = load_affinity(affinity_head, queries, keys, n)
        accumulator = dot(tl.trans(rounded(affinity, grad_out.dtype)), grad_out, accumulator, PRECISION)
    return accumulator


@triton.jit
def finish_grad_v(
    accumulator,
    grad_out_head,
    taps_ptr,
    affinity_ptr,
    grad_v_head,
    head,
    keys,
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
    BLOCK_M: tl.constexpr,
):
    """Add the transposed static terms to alpha · Pᵀ grad_out and write grad_v."""
    if affinity_ptr is not None:
        affinity_head = affinity_ptr + head * n * n
        accumulator = add_dense_transposed(
            accumulator,
            grad_out_head,
            affinity_head,
            keys,
            n,
            stride_n,
            PRECISION,
            HEAD_DIM,
            BLOCK_D,
            BLOCK_M,
        )
    if taps_ptr is not None:
        accumulator = add_local(
            accumulator,
            grad_out_head,
            taps_ptr,
            head,
            keys,
            height,
            width,
            stride_n,
            num_heads,
            KERNEL_H,
            KERNEL_W,
            True,
            HEAD_DIM,
            BLOCK_D,
        )
    store_tokens(grad_v_head, accumulator, keys, n, grad_v_stride_n, HEAD_DIM, BLOCK_D)


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
    scale,
    KERNEL_H: tl.constexpr,
    KERNEL_W: tl.constexpr,
    PRECISION: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """All gradients of one head of one image (n <= BLOCK_N); grad_alpha (B, M) holds this head's share."""
    _, head, batch = locate(1, num_heads)
    keys = tl.arange(0, BLOCK_N)
    q_head = head_of(q_ptr, q_strides, batch, head)
    grad_out_head = head_of(grad_out_ptr, grad_out_strides, batch, head)
    grad_q_head = head_of(grad_q_ptr, grad_strides, batch, head)
    logsumexp_head = logsumexp_ptr + (batch * num_heads + head) * n
    alpha = tl.load(alpha_ptr + head)

    k = load_tokens(head_of(k_ptr, k_strides, batch, head), keys, n, k_strides[1], HEAD_DIM, BLOCK_D)
    v = load_tokens(head_of(v_ptr, v_strides, batch, head), keys, n, v_strides[1], HEAD_DIM, BLOCK_D)
    grad_k = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    grad_v = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    deltas = tl.zeros([BLOCK_M], tl.float32)
    for start in range(0, n, BLOCK_M):
        queries = start + tl.arange(0, BLOCK_M)
        q = load_tokens(q_head, queries, n, q_strides[1], HEAD_DIM, BLOCK_D)
        grad_out = load_tokens(grad_out_head, queries, n, grad_out_strides[1], HEAD_DIM, BLOCK_D)
        logsumexp = tl.load(logsumexp_head + queries, mask=queries < n, other=float("inf"))
        zeros = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
        scores = dot(k, tl.trans(q), zeros, PRECISION) * (scale * LOG2E) - (logsumexp * LOG2E)[None, :]
        weights = tl.where(keys[:, None] < n, tl.exp2(scores), 0.0)
        grad_v = dot(rounded(weights, grad_out.dtype), grad_out, grad_v, PRECISION)
        grad_weights = dot(v, tl.trans(grad_out), zeros, PRECISION)
        delta = tl.sum(weights * grad_weights, 0)
        deltas += delta
        grad_scores = rounded(weights * (grad_weights - delta[None, :]), k.dtype)
        grad_k = dot(grad_scores, q, grad_k, PRECISION)
        grad_q = dot(tl.trans(grad_scores), k, tl.zeros([BLOCK_M, BLOCK_D], tl.float32), PRECISION)
        store_tokens(grad_q_head, grad_q * (alpha * scale), queries, n, grad_strides[1], HEAD_DIM, BLOCK_D)

    tl.store(grad_alpha_ptr + batch * num_heads + head, tl.sum(deltas, 0))
    grad_k_head = head_of(grad_k_ptr, grad_strides, batch, head)
    store_tokens(grad_k_head, grad_k * (alpha * scale), keys, n, grad_strides[1], HEAD_DIM, BLOCK_D)
    finish_grad_v(
        grad_v * alpha,
        grad_out_head,
        taps_ptr,
        affinity_ptr,
        head_of(grad_v_ptr, grad_strides, batch, head),
        head,
        keys,
        n,
        num_heads,
        height,
        width,
        grad_out_strides[1],
        grad_strides[1],
        KERNEL_H,
        KERNEL_W,
        PRECISION,
        HEAD_DIM,
        BLOCK_D,
        BLOCK_M,
    )
