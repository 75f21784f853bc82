// SPDX-License-Identifier: MIT
// What the kernels of the MLP are given. Everything is contiguous; biases, their gradients and sample_scale
// are of the accumulation type.
#pragma once

#include "common/types.h"

namespace ck {

struct FusedMlpShape {
    int64_t samples, tokens;  // tokens of each sample
    int channels, hidden, out_channels;
};

struct FusedMlpForward {
    FusedMlpShape shape;
    const void* x;             // (samples, tokens, channels)
    const void* w1;            // (hidden, channels)
    const void* b1;            // (hidden,)
    const void* w2;            // (out_channels, hidden)
    const void* b2;            // (out_channels,)
    const void* sample_scale;  // (samples,) or null
    bool residual;             // add x
    void* out;                 // (samples, tokens, out_channels), written
};

struct FusedMlpBackward {
    FusedMlpShape shape;
    const void* grad_out;      // (samples, tokens, out_channels)
    const void* x;             // (samples, tokens, channels)
    const void* w1;            // (hidden, channels)
    const void* b1;            // (hidden,)
    const void* w2;            // (out_channels, hidden)
    const void* sample_scale;  // (samples,) or null
    bool residual;             // x was added
    void* grad_x;              // written, as all that follow
    void* grad_w1;
    void* grad_b1;
    void* grad_w2;
    void* grad_b2;
};

}  // namespace ck
