// SPDX-License-Identifier: MIT
// What the parts of the mix's backward share: a launch's arguments and how heads are given to blocks.
#pragma once

#include <algorithm>
#include <cstddef>
#include <limits>

#include "context_aggregation/cuda/tile.h"
#include "context_aggregation/params.h"
#include "cuda/runtime.h"

namespace ck::cuda {

struct BackwardArguments {
    ContextAggregationBackward mix;
    LocalGradient local;  // null pointers: not wanted
    // (batch, heads + heads * (taps + 1) * head_dim): what an image adds to the gradients of alpha, then of
    // the local weight and bias, with the channels next to each other as a warp has them.
    float* partials;
    // The widest access in bytes that every row of the inputs, or of the outputs, is aligned to.
    int input_access, output_access;

    float scale, exponent_scale;  // of the scores, of their power of 2

    constexpr int taps() const { return mix.shape.kernel_height * mix.shape.kernel_width; }
};

// The columns of `partials`.
constexpr int64_t partial_columns(const ContextAggregationShape& shape, bool local_gradient) {
    const int64_t sums = local_gradient ? shape.kernel_height * shape.kernel_width + 1 : 0;
    return shape.heads * (1 + shape.head_dim * sums);
}

// How the keys of a head are given to the warps of a block. The sums of dk and dv of a warp's keys stay in
// its registers: 64 of the 128 that 16 warps leave each other, or 128 of 255.
struct KeySplit {
    static constexpr int tiles_per_warp(int padded_head_dim, int element_bytes) {
        return padded_head_dim == 32 && element_bytes == 2 ? 2 : 1;
    }
    static constexpr int most_warps(int padded_head_dim) { return padded_head_dim == 128 ? 8 : 16; }

    KeySplit(const ContextAggregationShape& shape, int element_bytes) {
        const int keys_per_warp = kTile * tiles_per_warp(padded_head_dim(shape.head_dim), element_bytes);
        warps = ceil_div(shape.tokens, keys_per_warp);
        rows = warps * keys_per_warp;
    }

    int64_t warps;
    int64_t rows;  // the tokens and, behind them, rows of zeros
};

// Channels whose windows are in shared memory at a time.
constexpr int window_channels(int padded_head_dim) { return std::min(padded_head_dim, 64); }

// The shared memory of a block, one head: k, q, v and dy, rows 16 bytes apart; logsumexp; dS of 16 queries
// and one or, in float32, two sums of every query, in whose place the windows of the local term are later.
// More than any device has where the warps are too many.
inline size_t backward_shared_memory(const ContextAggregationShape& shape, int element_bytes) {
    const int head_dim = padded_head_dim(shape.head_dim);
    const KeySplit split(shape, element_bytes);
    if (split.warps > KeySplit::most_warps(head_dim)) return std::numeric_limits<size_t>::max();
    const size_t tokens = split.rows * (4 * (head_dim * element_bytes + 16) + sizeof(float));
    const size_t step = split.rows * (kTile * element_bytes + sizeof(float) * element_bytes / 2);
    const size_t windows = sizeof(float) * window_channels(head_dim) * window_taps_in_shared_memory(shape);
    return tokens + std::max(step, windows);
}

// These fill everything but what is reduced over the batch, for which they leave the partials.
void backward_bfloat16(const BackwardArguments& arguments, Stream stream);
void backward_float16(const BackwardArguments& arguments, Stream stream);
void backward_float32(const BackwardArguments& arguments, Stream stream);

}  // namespace ck::cuda
