// SPDX-License-Identifier: MIT
// What the kernels of deformable attention are given. Locations (x, y), weights and their gradients are of
// the accumulation type; they, out, grad_out and grad_value are contiguous.
#pragma once

#include "common/tokens.h"

namespace ck {

// A feature map, whose pixels begin at `start` of all levels'.
struct Level {
    int start, height, width;

    constexpr int pixels() const { return height * width; }
};

struct DeformableAttentionShape {
    int64_t batch, queries;
    int pixels, heads, head_dim, points, level_count;
    const Level* levels;  // level_count of them, in the caller's memory
};

struct DeformableAttentionForward {
    DeformableAttentionShape shape;
    Tokens value;           // (B, S, M, D), read
    const void* locations;  // (B, Q, M, L, P, 2)
    const void* weights;    // (B, Q, M, L, P)
    void* out;              // (B, Q, M, D), written
};

struct DeformableAttentionBackwardValue {
    DeformableAttentionShape shape;
    const void* grad_out;  // (B, Q, M, D)
    const void* locations;
    const void* weights;
    void* grad_value;  // (B, S, M, D), written
};

struct DeformableAttentionBackwardSampling {
    DeformableAttentionShape shape;
    const void* grad_out;
    Tokens value;
    const void* locations;
    const void* weights;
    void* grad_locations;  // as locations, written
    void* grad_weights;    // as weights, written
};

}  // namespace ck
