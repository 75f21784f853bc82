// SPDX-License-Identifier: MIT
// What the parts of the mix's forward share. A block computes one head of one image: it copies K and V into
// shared memory, then takes the queries in chunks, each in two steps. First a warp computes the attention of
// some query rows and leaves alpha * softmax(scale Q K^T) V there in float32; then, with the threads laid out
// over image rows and channels, the local term is added and y rounded and written.
#pragma once

#include <cstddef>

#include "common/runtime.h"
#include "context_aggregation/cuda/tile.h"
#include "context_aggregation/params.h"

namespace ck::cuda {

struct ForwardPlan {
    int access;         // from row_access, of q, k and v
    bool paired_store;  // whether two channels of the output can be written at once
    int key_rows;       // rows of K and V in shared memory
    int chunk_rows;     // queries per chunk
};

struct ForwardArguments {
    MixForward mix;
    ForwardPlan plan;
};

// How float32 exchanges probabilities between the lanes of a warp: 16 rows of 32, of so many floats.
constexpr int kProbabilityPitch = 40;

// How a kernel lays out a block's shared memory: the rows of K, of V, of the chunk (queries, later the
// attention of the same tokens), the warps' scratch and the local weight of the head's channels.
struct ForwardLayout {
    int rows_per_warp;    // queries that a warp takes at once
    int row_bytes;        // of K and V
    int chunk_row_bytes;  // of the chunk
    int scratch_bytes;    // that a warp needs besides
    int64_t key_rows;     // of K and V each: the tokens, rounded up to the kernel's tiles
    int64_t weight_bytes;
    int warps = 1, chunks = 1;

    size_t bytes() const {
        return 2 * key_rows * row_bytes + warps * (rows_per_warp * chunk_row_bytes + scratch_bytes) +
               weight_bytes;
    }
};

// The layout of float32, and of the types of 16 bits, with the number of warps.
ForwardLayout forward_layout(const MixShape& shape, DType dtype);

void forward_float32(const ForwardArguments& arguments, const ForwardLayout& layout, Stream stream);
void forward_bfloat16(const ForwardArguments& arguments, const ForwardLayout& layout, Stream stream);
void forward_float16(const ForwardArguments& arguments, const ForwardLayout& layout, Stream stream);

}  // namespace ck::cuda
