// SPDX-License-Identifier: MIT
// The mix's forward: which kernel, with how many threads and how much shared memory.
#include <algorithm>
#include <stdexcept>
#include <string>

#include "context_aggregation/cuda/forward.h"
#include "context_aggregation/cuda/kernels.h"

namespace ck::cuda {

namespace {

// What a block can have on compute capability 8.0. The same everywhere, so that one choice of kernel and
// tiles holds on every device.
constexpr size_t kSharedMemory = 163 * 1024;
constexpr int kMostWarps = 8;

void check(const MixForward& params) {
    const MixShape& shape = params.shape;
    if (shape.head_dim < 1 || shape.head_dim > 128) {
        throw std::invalid_argument("head_dim: expected 1 to 128, got " + std::to_string(shape.head_dim));
    }
    const int kernel = params.local_weight ? shape.kernel_height : 3;
    if ((kernel != 3 && kernel != 5 && kernel != 7) ||
        (params.local_weight && kernel != shape.kernel_width)) {
        throw std::invalid_argument("local_weight: expected a window of 3x3, 5x5 or 7x7, got " +
                                    std::to_string(shape.kernel_height) + "x" +
                                    std::to_string(shape.kernel_width));
    }
}

}  // namespace

ForwardLayout forward_layout(const MixShape& shape, DType dtype) {
    const bool single = dtype == DType::float32;
    const int padded = padded_head_dim(shape.head_dim);
    ForwardLayout layout;
    // With 32 channels a warp of tensor cores has the registers for two tiles of 16 queries, which then share
    // what is read of K and V.
    layout.rows_per_warp = !single && padded == 32 ? 32 : 16;
    layout.row_bytes = (single ? 4 : 2) * padded + 16;
    layout.chunk_row_bytes = single ? layout.row_bytes : 2 * layout.row_bytes;
    layout.scratch_bytes = single ? 16 * kProbabilityPitch * 4 : 0;
    layout.key_rows = round_up(shape.tokens, single ? 32 : 16);
    layout.weight_bytes = round_up(shape.head_dim, 2) * shape.kernel_height * shape.kernel_width * 4;
    const int64_t tiles = ceil_div(shape.tokens, layout.rows_per_warp);
    do {  // the fewest chunks that fit, and no more warps than they need
        layout.warps = static_cast<int>(std::min<int64_t>(ceil_div(tiles, layout.chunks), kMostWarps));
        ++layout.chunks;
    } while (layout.warps > 1 && layout.bytes() > kSharedMemory);
    layout.chunks = static_cast<int>(ceil_div(tiles, layout.warps));
    layout.warps = static_cast<int>(ceil_div(tiles, layout.chunks));
    return layout;
}

size_t mix_forward_shared_memory(const MixShape& shape, DType dtype) {
    return forward_layout(shape, dtype).bytes();
}

void mix_forward(const MixForward& params, DType dtype, Stream stream) {
    const MixShape& shape = params.shape;
    if (shape.batch * shape.tokens * shape.heads == 0) return;
    check(params);
    const int element_bytes = dtype == DType::float32 ? 4 : 2;
    ForwardArguments arguments{params, {}};
    if (!params.local_weight) {
        arguments.mix.shape.kernel_height = arguments.mix.shape.kernel_width = 0;
        arguments.mix.shape.height = 1;
        arguments.mix.shape.width = static_cast<int>(shape.tokens);
    }
    const ForwardLayout layout = forward_layout(arguments.mix.shape, dtype);
    ForwardPlan& plan = arguments.plan;
    plan.access = 16;
    for (const Tokens& tokens : {params.q, params.k, params.v}) {
        plan.access = std::min(plan.access, row_access(tokens, shape.head_dim, element_bytes));
    }
    const auto out = reinterpret_cast<uintptr_t>(params.out.data) / element_bytes;
    plan.paired_store =
        (out | params.out.batch_stride | params.out.token_stride | params.out.head_stride | shape.head_dim) %
            2 ==
        0;
    plan.key_rows = static_cast<int>(layout.key_rows);
    plan.chunk_rows = layout.warps * layout.rows_per_warp;
    switch (dtype) {
        case DType::float32:
            return forward_float32(arguments, layout, stream);
        case DType::bfloat16:
            return forward_bfloat16(arguments, layout, stream);
        case DType::float16:
            return forward_float16(arguments, layout, stream);
        case DType::float64:
            throw std::invalid_argument("dtype: expected float32, bfloat16 or float16, got float64");
    }
}

}  // namespace ck::cuda
