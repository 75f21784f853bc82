// SPDX-License-Identifier: MIT
// What the parts of the mix's backward share: a launch's arguments and how heads are given to blocks.
#pragma once

#include <algorithm>
#include <cstddef>

#include "common/runtime.h"
#include "context_aggregation/cuda/tile.h"
#include "context_aggregation/params.h"

namespace ck::cuda {

struct BackwardArguments {
    MixBackward mix;
    LocalGradient local;  // null pointers: not wanted
    // (batch, heads * (1 + head_dim * (taps + 1))): what an image adds to the gradients of alpha, then of the
    // local weight and bias.
    float* partials;
    // (2, batch * heads, rows, pitch): dq between two chunks of keys, and dv. Only read with several chunks.
    float* unfinished;
    // The widest access in bytes that every row of the inputs, or of the outputs, is aligned to.
    int input_access, output_access;

    constexpr int64_t heads() const { return mix.shape.batch * mix.shape.heads; }
    constexpr int taps() const { return mix.shape.kernel_height * mix.shape.kernel_width; }
};

// The columns of `partials`.
constexpr int64_t partial_columns(const MixShape& shape, bool local_gradient) {
    const int64_t sums = local_gradient ? shape.kernel_height * shape.kernel_width + 1 : 0;
    return shape.heads * (1 + shape.head_dim * sums);
}

constexpr int kTile = 16;  // keys, or queries: the rows of mma.sync

// How the tensor-core kernel gives the keys of a head to warps. The sums of dk and dv of a warp's keys stay
// in its registers.
struct KeySplit {
    // Tiles of a warp, and warps that a block's registers are enough for.
    static constexpr int tiles_per_warp(int padded_head_dim, int element_bytes) {
        return padded_head_dim == 32 && element_bytes == 2 ? 2 : 1;
    }
    static constexpr int most_warps(int padded_head_dim) { return padded_head_dim == 128 ? 8 : 16; }

    KeySplit(const MixShape& shape, int element_bytes) {
        const int head_dim = padded_head_dim(shape.head_dim),
                  tiles_of_warp = tiles_per_warp(head_dim, element_bytes);
        const int64_t tiles = ceil_div(shape.tokens, kTile);
        chunks = static_cast<int>(ceil_div(tiles, most_warps(head_dim) * tiles_of_warp));
        warps = static_cast<int>(ceil_div(ceil_div(tiles, chunks), tiles_of_warp));
        heads_per_block = std::max(1, 4 / warps);
    }

    int chunks;  // of keys, taken one after the other
    int warps;   // of a head
    int heads_per_block;
};

// The shared memory of a head with so many rows (tokens, rounded up to kTile): k, q, v and dy, rows 16 bytes
// apart; dS of 16 queries; logsumexp and one or, in float32, two sums of every query.
constexpr size_t backward_head_bytes(int64_t rows, int padded_head_dim, int element_bytes) {
    return rows *
           (4 * (padded_head_dim * element_bytes + 16) + kTile * element_bytes + 4 * (element_bytes / 2 + 1));
}

// These fill everything but what is reduced over the batch, for which they leave the partials.
void backward_bfloat16(const BackwardArguments& arguments, Stream stream);
void backward_float16(const BackwardArguments& arguments, Stream stream);
void backward_float32(const BackwardArguments& arguments, Stream stream);

}  // namespace ck::cuda
