# SPDX-License-Identifier: MIT
"""Backward of the mix for any number of tokens: one kernel by query tiles, then one by key tiles.

The formulas are those of backward_row.py. delta must be complete before any dS exists, and is not
grad_out·out (out holds the static terms too), so the first kernel walks the keys twice.
"""

import triton
import triton.language as tl

from ...triton_primitives import dot, rounded
from .backward_row import finish_grad_v
from .primitives import LOG2E, head_of, load_tokens, locate, softmax_weights, store_tokens


@triton.jit
def weights_and_gradient(
    q,
    grad_out,
    k_head,
    v_head,
    k_stride,
    v_stride,
    start,
    n,
    logsumexp_log2,
    scale,
    PRECISION: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """P and dP of the (queries, keys) tile whose keys begin at `start`, and these keys."""
    k = load_tokens(k_head, start, n, k_stride, HEAD_DIM, BLOCK_N, BLOCK_D)
    v = load_tokens(v_head, start, n, v_stride, HEAD_DIM, BLOCK_N, BLOCK_D)
    zeros = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    weights = softmax_weights(dot(q, tl.trans(k), zeros, PRECISION), logsumexp_log2[:, None], scale)
    return weights, dot(grad_out, tl.trans(v), zeros, PRECISION), k


@triton.jit
def backward_query_kernel(
    grad_out_ptr,
    q_ptr,
    k_ptr,
    v_ptr,
    alpha_ptr,
    logsumexp_ptr,
    grad_q_ptr,
    delta_ptr,
    grad_out_strides,
    q_strides,
    k_strides,
    v_strides,
    grad_strides,
    n,
    num_heads,
    scale,
    PRECISION: tl.constexpr,
    UNIT: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """grad_q and delta (B, M, N) of one block of queries."""
    tile, head, batch = locate(tl.cdiv(n, BLOCK_M), num_heads)
    first_query = tile * BLOCK_M
    q_head, q_stride = head_of(q_ptr, q_strides, batch, head, UNIT)
    k_head, k_stride = head_of(k_ptr, k_strides, batch, head, UNIT)
    v_head, v_stride = head_of(v_ptr, v_strides, batch, head, UNIT)
    grad_out_head, grad_out_stride = head_of(grad_out_ptr, grad_out_strides, batch, head, UNIT)
    queries = first_query + tl.arange(0, BLOCK_M)
    rows = (batch * num_heads + head) * n + queries

    q = load_tokens(q_head, first_query, n, q_stride, HEAD_DIM, BLOCK_M, BLOCK_D)
    grad_out = load_tokens(grad_out_head, first_query, n, grad_out_stride, HEAD_DIM, BLOCK_M, BLOCK_D)
    logsumexp_log2 = tl.load(logsumexp_ptr + rows, mask=queries < n, other=float("inf")) * LOG2E

    delta = tl.zeros([BLOCK_M], tl.float32)
    for start in range(0, n, BLOCK_N):
        weights, grad_weights, _ = weights_and_gradient(
            q,
            grad_out,
            k_head,
            v_head,
            k_stride,
            v_stride,
            start,
            n,
            logsumexp_log2,
            scale,
            PRECISION,
            HEAD_DIM,
            BLOCK_D,
            BLOCK_M,
            BLOCK_N,
        )
        delta += tl.sum(weights * grad_weights, 1)
    tl.store(delta_ptr + rows, delta, mask=queries < n)

    grad_q = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for start in range(0, n, BLOCK_N):
        weights, grad_weights, k = weights_and_gradient(
            q,
            grad_out,
            k_head,
            v_head,
            k_stride,
            v_stride,
            start,
            n,
            logsumexp_log2,
            scale,
            PRECISION,
            HEAD_DIM,
            BLOCK_D,
            BLOCK_M,
            BLOCK_N,
        )
        grad_scores = weights * (grad_weights - delta[:, None])
        grad_q = dot(rounded(grad_scores, k.dtype), k, grad_q, PRECISION)
    grad_q *= tl.load(alpha_ptr + head) * scale
    grad_q_head, grad_stride = head_of(grad_q_ptr, grad_strides, batch, head, UNIT)
    store_tokens(grad_q_head, grad_q, first_query, n, grad_stride, HEAD_DIM, BLOCK_M, BLOCK_D)


@triton.jit
def backward_key_kernel(
    grad_out_ptr,
    q_ptr,
    k_ptr,
    v_ptr,
    alpha_ptr,
    taps_ptr,
    affinity_ptr,
    logsumexp_ptr,
    delta_ptr,
    grad_k_ptr,
    grad_v_ptr,
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
    UNIT: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """grad_k and grad_v of one block of keys; rows of (keys, queries) never mix, so absent keys need no mask."""
    tile, head, batch = locate(tl.cdiv(n, BLOCK_N), num_heads)
    first_key = tile * BLOCK_N
    q_head, q_stride = head_of(q_ptr, q_strides, batch, head, UNIT)
    k_head, k_stride = head_of(k_ptr, k_strides, batch, head, UNIT)
    v_head, v_stride = head_of(v_ptr, v_strides, batch, head, UNIT)
    grad_out_head, grad_out_stride = head_of(grad_out_ptr, grad_out_strides, batch, head, UNIT)
    rows = (batch * num_heads + head) * n
    alpha = tl.load(alpha_ptr + head)

    k = load_tokens(k_head, first_key, n, k_stride, HEAD_DIM, BLOCK_N, BLOCK_D)
    v = load_tokens(v_head, first_key, n, v_stride, HEAD_DIM, BLOCK_N, BLOCK_D)
    grad_k = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    grad_v = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    for start in range(0, n, BLOCK_M):
        queries = start + tl.arange(0, BLOCK_M)
        q = load_tokens(q_head, start, n, q_stride, HEAD_DIM, BLOCK_M, BLOCK_D)
        grad_out = load_tokens(grad_out_head, start, n, grad_out_stride, HEAD_DIM, BLOCK_M, BLOCK_D)
        logsumexp = tl.load(logsumexp_ptr + rows + queries, mask=queries < n, other=float("inf"))
        delta = tl.load(delta_ptr + rows + queries, mask=queries < n, other=0.0)
        zeros = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
        weights = softmax_weights(dot(k, tl.trans(q), zeros, PRECISION), (logsumexp * LOG2E)[None, :], scale)
        grad_v = dot(rounded(weights, grad_out.dtype), grad_out, grad_v, PRECISION)
        grad_weights = dot(v, tl.trans(grad_out), zeros, PRECISION)
        grad_scores = weights * (grad_weights - delta[None, :])
        grad_k = dot(rounded(grad_scores, q.dtype), q, grad_k, PRECISION)

    grad_k_head, grad_stride = head_of(grad_k_ptr, grad_strides, batch, head, UNIT)
    grad_v_head, _ = head_of(grad_v_ptr, grad_strides, batch, head, UNIT)
    store_tokens(grad_k_head, grad_k * (alpha * scale), first_key, n, grad_stride, HEAD_DIM, BLOCK_N, BLOCK_D)
    finish_grad_v(
        grad_v * alpha,
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
        grad_out_stride,
        grad_stride,
        KERNEL_H,
        KERNEL_W,
        PRECISION,
        HEAD_DIM,
        BLOCK_D,
        BLOCK_N,
    )
