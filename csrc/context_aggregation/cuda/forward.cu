// SPDX-License-Identifier: MIT
// The mix's forward: which kernel, with how many threads and how much shared memory.
#include <algorithm>
#include <stdexcept>
#include <string>

#include "context_aggregation/cuda/forward.h"
#include "context_aggregation/cuda/launch.h"
#include "context_aggregation/cuda/window.h"

namespace ck::cuda {

namespace {

// Sets what depends on the number of warps and their queries.
void set_chunks(ForwardLayout& layout, const ContextAggregationShape& shape, int most_warps, int warp_rows) {
    const int64_t most_tokens = most_warps * warp_rows;
    int64_t tokens;
    if (shape.width <= most_tokens) {
        const int64_t chunks = ceil_div(shape.height, most_tokens / shape.width);
        tokens = ceil_div(shape.height, chunks) * shape.width;
    } else {
        tokens = ceil_div(shape.width, ceil_div(shape.width, most_tokens));
    }
    layout.warps = static_cast<int>(ceil_div(tokens, warp_rows));
    layout.chunk_tokens = static_cast<int>(tokens);
    layout.chunk_rows = layout.warps * warp_rows;
}

// Without a window the grid does not matter: one row.
ContextAggregationShape with_grid(ContextAggregationShape shape) {
    if (shape.kernel_height == 0) {
        shape.height = 1;
        shape.width = static_cast<int>(shape.tokens);
    }
    return shape;
}

}  // namespace

ForwardLayout forward_layout(const ContextAggregationShape& given, DType dtype) {
    const ContextAggregationShape shape = with_grid(given);
    const bool single = dtype == DType::float32;
    const int channels = padded_head_dim(shape.head_dim);
    // With 32 channels a warp of tensor cores has the registers for two tiles of 16 queries, which then share
    // what is read of K and V.
    const int warp_rows = !single && channels == 32 ? 32 : 16;
    const int64_t row_bytes = (single ? 4 : 2) * channels + 16;
    const int64_t chunk_row_bytes = single ? row_bytes : 2 * row_bytes;
    const int64_t scratch_bytes = single ? 16 * kProbabilityPitch * 4 : 0;
    const int64_t weight_bytes = round_up(shape.head_dim, 2) * window_taps_in_shared_memory(shape) * 4;

    const int limit = shared_memory_limit();
    ForwardLayout layout;
    layout.key_rows = static_cast<int>(round_up(shape.tokens, single ? 32 : 16));
    int64_t bytes;
    int most_warps = kMaxWarps;
    do {  // the fewest chunks that fit the device's shared memory
        set_chunks(layout, shape, most_warps, warp_rows);
        bytes = (2 * layout.key_rows + kZeroTokens) * row_bytes + layout.chunk_rows * chunk_row_bytes +
                layout.warps * scratch_bytes + weight_bytes;
    } while (bytes > limit && --most_warps > 0);
    layout.bytes = static_cast<size_t>(bytes);
    return layout;
}

size_t context_aggregation_forward_shared_memory(const ContextAggregationShape& shape, DType dtype) {
    check(shape);
    return shape.tokens == 0 ? 0 : forward_layout(shape, dtype).bytes;
}

void context_aggregation_forward(const ContextAggregationForward& params, DType dtype, Stream stream) {
    ContextAggregationShape shape = params.shape;
    if (shape.batch * shape.tokens * shape.heads == 0) return;
    if (!params.local_weight) shape.kernel_height = shape.kernel_width = 0;
    check(shape);
    ForwardArguments arguments{params, forward_layout(shape, dtype), /*access=*/16, /*paired_store=*/false};
    arguments.mix.shape = with_grid(shape);

    const int element_bytes = dtype == DType::float32 ? 4 : 2;
    for (const Tokens& tokens : {params.q, params.k, params.v}) {
        arguments.access = std::min(arguments.access, row_access(tokens, shape, element_bytes));
    }
    const Tokens& out = params.out;
    const int64_t unit = reinterpret_cast<intptr_t>(out.data) / element_bytes | out.batch_stride |
                         out.token_stride | out.head_stride | shape.head_dim;
    arguments.paired_store = unit % 2 == 0;
    switch (dtype) {
        case DType::float32:
            return forward_float32(arguments, stream);
        case DType::bfloat16:
            return forward_bfloat16(arguments, stream);
        case DType::float16:
            return forward_float16(arguments, stream);
        case DType::float64:
            throw std::invalid_argument("dtype: expected float32, bfloat16 or float16, got float64");
    }
}

}  // namespace ck::cuda
