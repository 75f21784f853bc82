# SPDX-License-Identifier: MIT
"""Backward of the mix for any number of tokens, first kernel, by query tiles: delta and grad_q.

The formulas are those of backward_row.py. delta must be complete before any dS exists, and is not grad_out·out (out
holds the static terms too), so the kernel walks the keys twice. Keys that fill no tile of BLOCK_N have one of TAIL.
"""

import triton
import triton.language as tl

from ...common.triton_primitives import dot, rounded
from .primitives import (
    LN2,
    head_of,
    inverse_or_zero,
    load_tokens,
    locate,
    no_weight_from,
    softmax_weights,
    store_tokens,
)


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
    logsumexp,
    scale_log2,
    PRECISION: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    KEYS: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """P and dP of the (queries, keys) tile whose keys begin at `start`, and these keys; WHOLE: all of them exist."""
    k = load_tokens(k_head, start, n, k_stride, HEAD_DIM, KEYS, BLOCK_D, WHOLE)
    v = load_tokens(v_head, start, n, v_stride, HEAD_DIM, KEYS, BLOCK_D, WHOLE)
    zeros = tl.zeros([BLOCK_M, KEYS], tl.float32)
    most = 0.0 if WHOLE else no_weight_from(n, start, KEYS)[None, :]
    weights = softmax_weights(dot(q, tl.trans(k), zeros, PRECISION), logsumexp[:, None], scale_log2, most)
    return weights, dot(grad_out, tl.trans(v), zeros, PRECISION), k


@triton.jit
def add_delta(
    delta,
    weight_sum,
    q,
    grad_out,
    k_head,
    v_head,
    k_stride,
    v_stride,
    start,
    n,
    logsumexp,
    scale_log2,
    PRECISION: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    KEYS: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """Add the share of the keys from `start` on to delta and to the sum of P."""
    weights, grad_weights, _ = weights_and_gradient(
        q,
        grad_out,
        k_head,
        v_head,
        k_stride,
        v_stride,
        start,
        n,
        logsumexp,
        scale_log2,
        PRECISION,
        HEAD_DIM,
        BLOCK_D,
        BLOCK_M,
        KEYS,
        WHOLE,
    )
    return delta + tl.sum(weights * grad_weights, 1), weight_sum + tl.sum(weights, 1)


@triton.jit
def add_keys(
    grad_q,
    delta,
    q,
    grad_out,
    k_head,
    v_head,
    k_stride,
    v_stride,
    start,
    n,
    logsumexp,
    scale_log2,
    PRECISION: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    KEYS: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """Add the share of the keys from `start` on to grad_q, before alpha and scale."""
    weights, grad_weights, k = weights_and_gradient(
        q,
        grad_out,
        k_head,
        v_head,
        k_stride,
        v_stride,
        start,
        n,
        logsumexp,
        scale_log2,
        PRECISION,
        HEAD_DIM,
        BLOCK_D,
        BLOCK_M,
        KEYS,
        WHOLE,
    )
    grad_scores = weights * (grad_weights - delta[:, None])
    return dot(rounded(grad_scores, k.dtype), k, grad_q, PRECISION)


# A constant n = 1 would leave no loop, and without its pipeline ptxas fetches all operands at once and spills them.
@triton.jit(do_not_specialize=["n"])
def backward_query_kernel(
    grad_out_ptr,
    q_ptr,
    k_ptr,
    v_ptr,
    alpha_ptr,
    logsumexp_ptr,
    grad_q_ptr,
    delta_ptr,
    inverse_sum_ptr,
    grad_out_strides,
    q_strides,
    k_strides,
    v_strides,
    grad_strides,
    n,
    num_heads,
    scale_log2,
    PRECISION: tl.constexpr,
    UNIT: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    TAIL: tl.constexpr,
):
    """grad_q and delta (B, M, N) of one block of queries.

    With `inverse_sum_ptr` (B, M, N), P is divided by its own sum, whose inverse is written there.
    """
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
    logsumexp = tl.load(logsumexp_ptr + rows, mask=queries < n, other=float("inf"))

    whole = n // BLOCK_N * BLOCK_N
    delta = tl.zeros([BLOCK_M], tl.float32)
    weight_sum = tl.zeros([BLOCK_M], tl.float32)
    for start in range(0, whole, BLOCK_N):
        delta, weight_sum = add_delta(
            delta,
            weight_sum,
            q,
            grad_out,
            k_head,
            v_head,
            k_stride,
            v_stride,
            start,
            n,
            logsumexp,
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
            delta, weight_sum = add_delta(
                delta,
                weight_sum,
                q,
                grad_out,
                k_head,
                v_head,
                k_stride,
                v_stride,
                start,
                n,
                logsumexp,
                scale_log2,
                PRECISION,
                HEAD_DIM,
                BLOCK_D,
                BLOCK_M,
                TAIL,
                False,
            )
    if inverse_sum_ptr is not None:
        inverse_sum = inverse_or_zero(weight_sum)
        delta *= inverse_sum
        tl.store(inverse_sum_ptr + rows, inverse_sum, mask=queries < n)
    tl.store(delta_ptr + rows, delta, mask=queries < n)

    grad_q = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for start in range(0, whole, BLOCK_N):
        grad_q = add_keys(
            grad_q,
            delta,
            q,
            grad_out,
            k_head,
            v_head,
            k_stride,
            v_stride,
            start,
            n,
            logsumexp,
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
            grad_q = add_keys(
                grad_q,
                delta,
                q,
                grad_out,
                k_head,
                v_head,
                k_stride,
                v_stride,
                start,
                n,
                logsumexp,
                scale_log2,
                PRECISION,
                HEAD_DIM,
                BLOCK_D,
                BLOCK_M,
                TAIL,
                False,
            )
    if inverse_sum_ptr is not None:
        grad_q *= inverse_sum[:, None]
    grad_q *= tl.load(alpha_ptr + head) * (scale_log2 * LN2)
    grad_q_head, grad_stride = head_of(grad_q_ptr, grad_strides, batch, head, UNIT)
    store_tokens(grad_q_head, grad_q, first_query, n, grad_stride, HEAD_DIM, BLOCK_M, BLOCK_D)
