// SPDX-License-Identifier: MIT
// What the depthwise kernels are given. Images are (batch, height, width, channel) with the channels next to
// each other; strides are in elements. Weights, biases and their gradients are contiguous and of the
// accumulation type.
#pragma once

#include "common/types.h"

namespace ck {

struct Image {
    void* data;
    int64_t batch_stride, row_stride, column_stride;

    template <class T>
    constexpr T* row(int64_t batch, int64_t y) const {  // constexpr: device code may call it
        return static_cast<T*>(data) + batch * batch_stride + y * row_stride;
    }
};

struct LocalAggregationShape {
    int64_t batch;
    int height, width, channels, kernel_height, kernel_width;
};

struct LocalAggregationForward {
    LocalAggregationShape shape;
    Image x;             // read
    const void* weight;  // (C, kh, kw)
    const void* bias;    // (C,) or null
    Image out;           // written
};

// Of the output as it was written, rounded to its type: what the norm that follows needs.
struct ChannelStatistics {
    void* sum;  // (C,), written; both null: not wanted
    void* m2;   // (C,), written: the sum of squared deviations from the mean
};

struct LocalAggregationBackwardWeight {
    LocalAggregationShape shape;
    Image grad_out, x;  // read
    void* grad_weight;  // (C, kh, kw), written
    void* grad_bias;    // (C,), written
};

}  // namespace ck
