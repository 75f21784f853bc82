// SPDX-License-Identifier: MIT
// The second step of the forward: attention from shared memory + local term, rounded once, to global memory.
#pragma once

#include "context_aggregation/cuda/forward_block.h"
#include "context_aggregation/cuda/window.h"

namespace ck::cuda {

namespace output {

template <class T>
CK_DEVICE void store_pair(T* address, float first, float second) {
    if constexpr (sizeof(T) == 4) {
        store<2>(address, Vec<float, 2>{first, second});
    } else {
        store<1>(reinterpret_cast<uint32_t*>(address), Vec<uint32_t, 1>{pack<T>(first, second)});
    }
}

// Adds the taps of the window's rows [FirstRow, FirstRow + Rows), or nothing for K = 0. The sums start from
// the head's `bias`, or zero. With Last and where pairs of channels can be written, they go to y; else back
// to where the attention was.
template <class T, int D, int K, int FirstRow, int Rows, bool Last>
CK_DEVICE void add_window(const ForwardBlock<T, D>& block, const Chunk& chunk, const float* bias) {
    constexpr int kRow = ForwardBlock<T, D>::kAttentionPitch;
    const MixShape& shape = block.arguments.mix.shape;
    const Tokens& out = block.arguments.mix.out;
    const bool to_memory = Last && block.arguments.paired_store;
    const int pairs = (shape.head_dim + 1) / 2;
    const int first_row = chunk.begin / shape.width, count = (chunk.end - 1) / shape.width - first_row + 1;
    const int row_begin = first_row * shape.width;
    // Of several rows a chunk has all columns.
    const Columns columns{count > 1 ? 0 : chunk.begin - row_begin,
                          count > 1 ? shape.width : chunk.end - row_begin, shape.height, shape.width};
    for (int item = thread_index(); item < count * pairs; item += block_size()) {
        const int row = item / pairs, channel = item % pairs * 2;
        const int token = row_begin + row * shape.width;  // of column 0
        float* const attention = block.attention() + (token - chunk.begin) * kRow + channel;
        T* y = out.head<T>(block.batch, block.head) + (token + columns.begin) * out.token_stride + channel;
        const auto take = [&](int x, const Float2& sum, bool wanted) {
            const Vec<float, 2> dynamic = load<2>(attention + x * kRow);
            const Float2 both{dynamic.data[0] + sum.x, dynamic.data[1] + sum.y};
            if (wanted && to_memory) {
                store_pair(y, both.x, both.y);
                y += out.token_stride;
            }
            if (wanted && !to_memory) store<2>(attention + x * kRow, Vec<float, 2>{both.x, both.y});
        };
        if constexpr (K == 0) {
            for (int x = columns.begin; x < columns.end; ++x) take(x, {0, 0}, true);
        } else {
            const bool second = channel + 1 < shape.head_dim;
            const Float2 start{bias ? bias[channel] : 0.f, bias && second ? bias[channel + 1] : 0.f};
            const WindowInput<T> input{block.values + channel, block.zeros() + channel,
                                       block.weight + channel * K * K};
            walk_row<T, K, FirstRow, Rows, kPitch<T, D>>(input, first_row + row, columns, start, take);
        }
    }
}

}  // namespace output

// By all threads of the block, after a barrier.
template <class T, int D>
CK_DEVICE void write_output(const ForwardBlock<T, D>& block, const Chunk& chunk) {
    const MixForward& mix = block.arguments.mix;
    const float* bias = static_cast<const float*>(mix.local_bias);
    if (bias) bias += block.head * mix.shape.head_dim;
    switch (mix.shape.kernel_height) {
        case 3:
            output::add_window<T, D, 3, 0, 3, true>(block, chunk, bias);
            break;
        case 5:
            output::add_window<T, D, 5, 0, 5, true>(block, chunk, bias);
            break;
        case 7:  // in two parts: a thread has registers for the weights of 28 taps of two channels, not of 49
            output::add_window<T, D, 7, 0, 4, false>(block, chunk, bias);
            output::add_window<T, D, 7, 4, 3, true>(block, chunk, nullptr);
            break;
        default:
            output::add_window<T, D, 0, 0, 0, true>(block, chunk, nullptr);
    }
    if (!block.arguments.paired_store) {
        sync_threads();
        const int head_dim = mix.shape.head_dim;
        T* const y = mix.out.head<T>(block.batch, block.head) + chunk.begin * mix.out.token_stride;
        for (int i = thread_index(); i < (chunk.end - chunk.begin) * head_dim; i += block_size()) {
            const int row = i / head_dim, channel = i % head_dim;
            const float value = block.attention()[row * ForwardBlock<T, D>::kAttentionPitch + channel];
            y[row * mix.out.token_stride + channel] = from_float<T>(value);
        }
    }
}

}  // namespace ck::cuda
