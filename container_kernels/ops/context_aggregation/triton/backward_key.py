# SPDX-License-Identifier: MIT
"""Backward of the mix for any number of tokens, second kernel, by key tiles: grad_k and grad_v.

The formulas are those of backward_row.py, delta is backward_query.py's. Queries that fill no tile of BLOCK_M have one
of TAIL.
"""

import triton
import triton.language as tl

from ...common.triton_primitives import dot, rounded
from .backward_row import grad_v_epilogue
from .primitives import LN2, head_of, load_queries_to_weigh, load_tokens, locate, softmax_weights, store_tokens


@triton.jit
def add_queries(
    grad_k,
    grad_v,
    k,
    v,
    q_head,
    grad_out_head,
    logsumexp_ptr,
    delta_ptr,
    inverse_sum_ptr,
    rows,
    q_stride,
    grad_out_stride,
    start,
    n,
    scale_log2,
    PRECISION: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    QUERIES: tl.constexpr,
    BLOCK_N: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """Add what the queries from `start` on have of grad_k and grad_v, before alpha and scale; WHOLE: all exist."""
    queries = start + tl.arange(0, QUERIES)
    grad_out = load_tokens(grad_out_head, start, n, grad_out_stride, HEAD_DIM, QUERIES, BLOCK_D, WHOLE)
    if WHOLE:
        q = load_tokens(q_head, start, n, q_stride, HEAD_DIM, QUERIES, BLOCK_D, WHOLE)
        logsumexp = tl.load(logsumexp_ptr + rows + queries)
        delta = tl.load(delta_ptr + rows + queries)
    else:
        q = load_queries_to_weigh(q_head, start, n, q_stride, HEAD_DIM, QUERIES, BLOCK_D)
        logsumexp = tl.load(logsumexp_ptr + rows + queries, mask=queries < n, other=float("inf"))
        delta = tl.load(delta_ptr + rows + queries, mask=queries < n, other=0.0)
    zeros = tl.zeros([BLOCK_N, QUERIES], tl.float32)
    weights = softmax_weights(dot(k, tl.trans(q), zeros, PRECISION), logsumexp[None, :], scale_log2, 0.0)
    if inverse_sum_ptr is not None:
        weights *= tl.load(inverse_sum_ptr + rows + queries, mask=queries < n, other=0.0)[None, :]
    grad_v = dot(rounded(weights, grad_out.dtype), grad_out, grad_v, PRECISION)
    grad_weights = dot(v, tl.trans(grad_out), zeros, PRECISION)
    grad_scores = weights * (grad_weights - delta[None, :])
    grad_k = dot(rounded(grad_scores, q.dtype), q, grad_k, PRECISION)
    return grad_k, grad_v


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
    inverse_sum_ptr,
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
    scale = scale_log2 * LN2

    k = load_tokens(k_head, first_key, n, k_stride, HEAD_DIM, BLOCK_N, BLOCK_D)
    v = load_tokens(v_head, first_key, n, v_stride, HEAD_DIM, BLOCK_N, BLOCK_D)
    grad_k = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    grad_v = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    whole = n // BLOCK_M * BLOCK_M
    for start in range(0, whole, BLOCK_M):
        grad_k, grad_v = add_queries(
            grad_k,
            grad_v,
            k,
            v,
            q_head,
            grad_out_head,
            logsumexp_ptr,
            delta_ptr,
            inverse_sum_ptr,
            rows,
            q_stride,
            grad_out_stride,
            start,
            n,
            scale_log2,
            PRECISION,
            HEAD_DIM,
            BLOCK_D,
            BLOCK_M,
            BLOCK_N,
            True,
        )
    if TAIL:
        for start in range(whole, n, TAIL):
            grad_k, grad_v = add_queries(
                grad_k,
                grad_v,
                k,
                v,
                q_head,
                grad_out_head,
                logsumexp_ptr,
                delta_ptr,
                inverse_sum_ptr,
                rows,
                q_stride,
                grad_out_stride,
                start,
                n,
                scale_log2,
                PRECISION,
                HEAD_DIM,
                BLOCK_D,
                TAIL,
                BLOCK_N,
                False,
            )

    grad_k_head, grad_stride = head_of(grad_k_ptr, grad_strides, batch, head, UNIT)
    grad_v_head, _ = head_of(grad_v_ptr, grad_strides, batch, head, UNIT)
    store_tokens(grad_k_head, grad_k * (alpha * scale), first_key, n, grad_stride, HEAD_DIM, BLOCK_N, BLOCK_D)
    grad_v_epilogue(
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
