// SPDX-License-Identifier: MIT
// What the kernels of the projection are given. Everything is contiguous; the bias, its gradient,
// sample_scale and statistics are of the accumulation type.
#pragma once

#include "common/types.h"

namespace ck {

struct ProjectionShape {
    int64_t samples, tokens;  // tokens of each sample
    int channels, out_channels;
};

struct ProjectionForward {
    ProjectionShape shape;
    const void* x;             // (samples, tokens, channels)
    const void* weight;        // (out_channels, channels)
    const void* bias;          // (out_channels,)
    const void* residual;      // (samples, tokens, out_channels) or null
    const void* sample_scale;  // (samples,) or null
    void* out;                 // (samples, tokens, out_channels), written
    // Sums over tokens of out as it was written, rounded to its type, and of its squared deviations from the
    // mean; both null: not wanted.
    void* channel_sum;  // (out_channels,), written
    void* channel_m2;   // (out_channels,), written
};

struct ProjectionBackward {
    ProjectionShape shape;
    const void* grad_out;      // (samples, tokens, out_channels)
    const void* x;             // (samples, tokens, channels)
    const void* weight;        // (out_channels, channels)
    const void* sample_scale;  // (samples,) or null
    void* grad_x;              // written, as all that follow
    void* grad_weight;
    void* grad_bias;
};

}  // namespace ck
