// SPDX-License-Identifier: MIT
// The second step of the forward: attention from shared memory + local term, rounded once, to global memory.
#pragma once

#include "context_aggregation/cuda/forward_block.h"
#include "context_aggregation/cuda/half_warps.h"
#include "context_aggregation/cuda/window.h"

namespace ck::cuda {

namespace output {

// The image rows of a chunk, and the columns that it has of each.
struct ChunkRows {
    int first, count;
    Columns columns;

    CK_DEVICE ChunkRows(const Chunk& chunk, const ContextAggregationShape& shape)
        : first(chunk.begin / shape.width), count((chunk.end - 1) / shape.width - first + 1) {
        // Of several rows a chunk has all columns.
        const int begin = count > 1 ? 0 : chunk.begin - first * shape.width;
        columns = {begin, count > 1 ? shape.width : begin + chunk.end - chunk.begin, shape.height,
                   shape.width};
    }
};

// Which pair of channels a thread has, and which rows of a chunk. It keeps the pair from row to row; only
// blocks of one warp can have fewer threads than there are pairs.
template <class T, int D>
struct RowSlice {
    int pairs, lanes, group, groups;
    PairedOrder order;

    CK_DEVICE RowSlice(const ChunkRows& rows, int head_dim)
        : pairs((head_dim + 1) / 2),
          lanes(pairs < block_size() ? pairs : block_size()),
          group(thread_index() / lanes),
          groups(block_size() / lanes),
          order(rows.count, rows_apart(rows.columns.width)) {}

    // Of the numbers group, group + groups, ... below the count of rows.
    CK_DEVICE int row(int slot) const { return kHalfWarpPerToken<T, D> ? order[slot] : slot; }
};

template <class T>
CK_DEVICE void store_pair(T* address, float first, float second) {
    if constexpr (sizeof(T) == 4) {
        store<2>(address, Vec<float, 2>{first, second});
    } else {
        store<1>(reinterpret_cast<uint32_t*>(address), Vec<uint32_t, 1>{pack<T>(first, second)});
    }
}

// Calls take(x, sums, true) for the columns of an image row with the sums of a window whose weights,
// (2, K, K), are too many for registers and shared memory.
template <int K, class T, int Pitch, class Take>
CK_DEVICE void walk_wide(const float* weight, bool second, const WindowInput<T, Pitch>& input, int y,
                         const Columns& columns, Float2 start, Take&& take) {
    CK_NO_UNROLL
    for (int x = columns.begin; x < columns.end; ++x) {
        Float2 sum = start;
        CK_NO_UNROLL
        for (int tap = 0; tap < K * K; ++tap) {
            const int row = y + tap / K - K / 2, column = x + tap % K - K / 2;
            if (row < 0 || row >= columns.height || column < 0 || column >= columns.width) continue;
            const Float2 value =
                to_floats<T>(load_pair<T>(input.values + (row * columns.width + column) * Pitch));
            sum.x += weight[tap] * value.x;
            if (second) sum.y += weight[K * K + tap] * value.y;
        }
        take(x, sum, true);
    }
}

// Adds the taps of the window's rows [FirstRow, FirstRow + Rows), or nothing for K = 0. The sums start from
// the head's `bias`, or zero. With Last and where pairs of channels can be written, they go to y; else back
// to where the attention was.
template <class T, int D, int K, int FirstRow, int Rows, bool Last>
CK_DEVICE void add_window(const ForwardBlock<T, D>& block, const ChunkRows& rows, const float* bias) {
    constexpr int kRow = ForwardBlock<T, D>::kAttentionPitch;
    const Tokens& out = block.arguments.mix.out;
    const bool to_memory = Last && block.arguments.paired_store;
    const Columns& columns = rows.columns;
    const int head_dim = block.arguments.mix.shape.head_dim;
    const RowSlice<T, D> slice(rows, head_dim);
    if (slice.group >= slice.groups) return;
    for (int pair = thread_index() % slice.lanes; pair < slice.pairs; pair += slice.lanes) {
        const int channel = 2 * pair;
        const auto add_row = [&](int row, const auto& walk) {
            const int token = row * columns.width;  // in the chunk's rows
            float* const dynamic = block.attention() + (token - columns.begin) * kRow + channel;
            T* y = out.head<T>(block.batch, block.head) + channel +
                   (rows.first * columns.width + columns.begin + token) * out.token_stride;
            walk([&](int x, const Float2& sum, bool wanted) {
                Vec<float, 2> pair{};
                if (wanted) pair = load<2>(dynamic + x * kRow);  // other rows are other threads'
                const Float2 both{pair.data[0] + sum.x, pair.data[1] + sum.y};
                if (wanted && to_memory) {
                    store_pair(y, both.x, both.y);
                    y += out.token_stride;
                }
                if (wanted && !to_memory) store<2>(dynamic + x * kRow, Vec<float, 2>{both.x, both.y});
            });
        };
        if constexpr (K == 0) {
            for (int slot = slice.group; slot < rows.count; slot += slice.groups) {
                add_row(slice.row(slot), [&](const auto& take) {
                    for (int x = columns.begin; x < columns.end; ++x) take(x, {0, 0}, true);
                });
            }
            continue;
        }
        const WindowInput<T, kPitch<T, D>> input{block.values + channel, block.zeros() + channel};
        const bool second = channel + 1 < head_dim;
        const Float2 start{bias ? bias[channel] : 0.f, bias && second ? bias[channel + 1] : 0.f};
        if constexpr (K == kWideWindow) {
            const float* const weight = block.weight_in_memory() + channel * K * K;
            for (int slot = slice.group; slot < rows.count; slot += slice.groups) {
                const int row = slice.row(slot);
                add_row(row, [&](const auto& take) {
                    walk_wide<K>(weight, second, input, rows.first + row, columns, start, take);
                });
            }
        } else if constexpr (K > 0) {
            const WindowTaps<K, FirstRow, Rows> taps(block.weight + channel * K * K);
            for (int slot = slice.group; slot < rows.count; slot += slice.groups) {
                const int row = slice.row(slot);
                add_row(row,
                        [&](const auto& take) { taps.walk(input, rows.first + row, columns, start, take); });
            }
        }
    }
}

}  // namespace output

// By all threads of the block, after a barrier.
template <class T, int D>
CK_DEVICE void write_output(const ForwardBlock<T, D>& block, const Chunk& chunk) {
    const ContextAggregationForward& mix = block.arguments.mix;
    const ContextAggregationShape& shape = mix.shape;
    const float* bias = static_cast<const float*>(mix.local_bias);
    if (bias) bias += static_cast<int64_t>(block.head) * shape.head_dim;
    const output::ChunkRows rows(chunk, shape);
    static_assert(kSquareWindows.size() == 4, "a case for every window");
    switch (shape.kernel_height) {
        case 3:
            output::add_window<T, D, 3, 0, 3, true>(block, rows, bias);
            break;
        case 5:
            output::add_window<T, D, 5, 0, 5, true>(block, rows, bias);
            break;
        case 7:  // in two parts: a thread has registers for the weights of 28 taps of two channels, not of 49
            output::add_window<T, D, 7, 0, 4, false>(block, rows, bias);
            output::add_window<T, D, 7, 4, 3, true>(block, rows, nullptr);
            break;
        case kWideWindow:
            output::add_window<T, D, kWideWindow, 0, kWideWindow, true>(block, rows, bias);
            break;
        case 0:
            output::add_window<T, D, 0, 0, 0, true>(block, rows, nullptr);
            break;
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
