// SPDX-License-Identifier: MIT
// What the parts of the mix's forward share. A block computes one head of one image: it copies K and V into
// shared memory, then takes the queries in chunks, each in two steps. First every warp computes the attention
// of some query rows and leaves alpha * softmax(scale Q K^T) V there in float32; then, with the threads laid
// out over image rows and channels, the local term is added and y rounded and written.
//
// A head that needs few warps is a block of few warps: a multiprocessor holds many of them, which wait for
// their copies and barriers at different times.
#pragma once

#include <cstddef>

#include "context_aggregation/cuda/tile.h"
#include "context_aggregation/params.h"
#include "cuda/runtime.h"

namespace ck::cuda {

// How float32 exchanges probabilities between the lanes of a warp: 16 rows of 32, of so many floats.
constexpr int kProbabilityPitch = 40;

constexpr int kMaxWarps = 8;  // of a block

// A block's shared memory: the rows of K, of V and some zeros, of the chunk (queries, later the attention of
// the same tokens), the warps' scratch and the local weight of the head's channels.
struct ForwardLayout {
    int warps;
    // Queries: of a chunk at most, and for how many there are rows. A chunk is some whole image rows, or a
    // part of one where a row is longer than what the warps can take.
    int chunk_tokens, chunk_rows;
    int key_rows;  // of K, and of V before the zeros
    size_t bytes;
};
ForwardLayout forward_layout(const ContextAggregationShape& shape, DType dtype);

struct ForwardArguments {
    ContextAggregationForward mix;  // without a local weight, the grid is one row and the window (0, 0)
    ForwardLayout layout;
    int access;         // from row_access, for q, k and v
    bool paired_store;  // whether two channels of the output can be written at once
};

void forward_float32(const ForwardArguments& arguments, Stream stream);
void forward_bfloat16(const ForwardArguments& arguments, Stream stream);
void forward_float16(const ForwardArguments& arguments, Stream stream);

}  // namespace ck::cuda
