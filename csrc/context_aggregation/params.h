// SPDX-License-Identifier: MIT
// What the kernels of the mix are given. `local_weight`, `local_bias` and `affinity` may be null; they,
// alpha, logsumexp and grad_alpha are contiguous and of the accumulation type.
#pragma once

#include "common/tokens.h"

namespace ck {

struct ContextAggregationShape {
    int64_t batch, tokens, heads;
    int head_dim;
    // The grid of the tokens and the window of the local weight.
    int height, width, kernel_height, kernel_width;
    double scale;
};

struct ContextAggregationForward {
    ContextAggregationShape shape;
    Tokens q, k, v;            // read
    const void* alpha;         // (M,)
    const void* local_weight;  // (M * D, kh, kw)
    const void* local_bias;    // (M * D,)
    const void* affinity;      // (M, N, N)
    Tokens out;                // written
    void* logsumexp;           // (B, M, N), natural (cpu) or in powers of two (cuda), as scores are there
};

struct ContextAggregationBackward {
    ContextAggregationShape shape;
    Tokens grad_out, q, k, v;
    const void* alpha;
    const void* local_weight;
    const void* affinity;
    const void* logsumexp;
    Tokens grad_q, grad_k, grad_v;  // written
    void* grad_alpha;               // (M,)
};

struct LocalGradient {
    void* weight;  // (M * D, kh, kw), float32, written
    void* bias;    // (M * D,)
};

}  // namespace ck
