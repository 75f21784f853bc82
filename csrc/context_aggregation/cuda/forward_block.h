// SPDX-License-Identifier: MIT
// One block of the forward: which head it has, where that lies in shared memory and how it gets there.
#pragma once

#include "context_aggregation/cuda/forward.h"
#include "context_aggregation/cuda/window.h"

namespace ck::cuda {

// Some tokens, as queries and as outputs.
struct Chunk {
    int begin, end;
};

template <class T, int D>
struct ForwardBlock {
    static constexpr int kRow = kPitch<T, D>;
    // A row of the chunk is one of queries in T, then one of attention in float32.
    static constexpr int kChunkRow = sizeof(T) == 4 ? kRow : 2 * kRow;
    static constexpr int kAttentionPitch = kChunkRow * static_cast<int>(sizeof(T)) / 4;

    const ForwardArguments& arguments;
    int batch, head, tokens;
    T* keys;
    T* values;
    T* chunk_rows;
    float* scratch;
    float* weight;

    CK_DEVICE ForwardBlock(const ForwardArguments& arguments, unsigned char* shared) : arguments(arguments) {
        const ContextAggregationShape& shape = arguments.mix.shape;
        const ForwardLayout& layout = arguments.layout;
        const auto heads = static_cast<unsigned>(shape.heads);
        batch = static_cast<int>(block_index().x / heads);
        head = static_cast<int>(block_index().x % heads);
        tokens = static_cast<int>(shape.tokens);
        keys = reinterpret_cast<T*>(shared);
        values = keys + layout.key_rows * kRow;
        chunk_rows = values + (layout.key_rows + kZeroTokens) * kRow;
        scratch = reinterpret_cast<float*>(chunk_rows + layout.chunk_rows * kChunkRow);
        weight = scratch + (sizeof(T) == 4 ? layout.chunk_rows * kProbabilityPitch : 0);
    }

    CK_DEVICE float* attention() const { return reinterpret_cast<float*>(chunk_rows); }
    CK_DEVICE const T* zeros() const { return values + arguments.layout.key_rows * kRow; }
    CK_DEVICE float* logsumexp() const {
        return static_cast<float*>(arguments.mix.logsumexp) +
               (batch * arguments.mix.shape.heads + head) * tokens;
    }
    // The local weight of the head's channels; null without a local term.
    CK_DEVICE const float* weight_in_memory() const {
        const ContextAggregationShape& shape = arguments.mix.shape;
        return static_cast<const float*>(arguments.mix.local_weight) +
               int64_t{head} * shape.head_dim * shape.kernel_height * shape.kernel_width;
    }
    CK_DEVICE float alpha() const { return static_cast<const float*>(arguments.mix.alpha)[head]; }
    // The scale of exponents to base 2.
    CK_DEVICE float scale() const { return static_cast<float>(arguments.mix.shape.scale * kLog2E<double>); }

    template <int Access, int Pitch>
    CK_DEVICE void load_tokens(T* rows, int count, const Tokens& source, int begin) const {
        load_rows<Access, T, D, Pitch>(rows, count, source.head<T>(batch, head) + begin * source.token_stride,
                                       source.token_stride, tokens - begin, arguments.mix.shape.head_dim);
    }

    // Starts to copy what all chunks need.
    CK_DEVICE void load_head() const {
        const ContextAggregationForward& mix = arguments.mix;
        const int key_rows = arguments.layout.key_rows;
        with_access<T>(arguments.access, [&]<int Access>() {
            load_tokens<Access, kRow>(keys, key_rows, mix.k, 0);
            load_tokens<Access, kRow>(values, key_rows + kZeroTokens, mix.v, 0);
        });
        if (mix.shape.kernel_height == kWideWindow) return;
        const int count = mix.shape.head_dim * mix.shape.kernel_height * mix.shape.kernel_width;
        load_floats(weight, weight_in_memory(), count, count);
    }

    // Copies the queries from `begin` on, when the chunk before is done with, and waits for everything.
    CK_DEVICE Chunk load_chunk(int begin) const {
        const ForwardLayout& layout = arguments.layout;
        const int width = arguments.mix.shape.width;
        if (begin > 0) sync_threads();
        with_access<T>(arguments.access, [&]<int Access>() {
            load_tokens<Access, kChunkRow>(chunk_rows, layout.chunk_rows, arguments.mix.q, begin);
        });
        copy_async_commit();
        copy_async_wait<0>();
        sync_threads();
        const int limit = width > layout.chunk_tokens ? (begin / width + 1) * width : tokens;
        return {begin, begin + layout.chunk_tokens < limit ? begin + layout.chunk_tokens : limit};
    }
};

}  // namespace ck::cuda
