// SPDX-License-Identifier: MIT
// The local term's share of the backward, on tokens in shared memory: a thread owns two channels and slides
// along the rows of the grid, so that window and sums stay in its registers.
#pragma once

#include <algorithm>

#include "context_aggregation/cuda/backward.h"
#include "context_aggregation/cuda/backward_tile.h"
#include "context_aggregation/params.h"
#include "cuda/device.h"

namespace ck::cuda {

// One head's part in the local term. Rows of tokens are kPitch<T, D> elements apart.
template <class T>
struct LocalHead {
    const ContextAggregationShape& shape;
    const T *value, *grad_out;  // in shared memory
    const float* weight;        // (head_dim, K * K)
    float* windows;             // in shared memory, for those of window_channels, where the first ones are
    float* smem_scratch;        // floats in shared memory, rows as wide: dv so far, and later other sums
    T* out;                     // dv
    int64_t out_stride;
    int out_access;
    float* partials;  // (K * K + 1, head_dim); null: not wanted
};

namespace local {

// Tokens of a row that a thread takes at a time. Grids of 7, 14, 28 and 56 have no remainder.
constexpr int kColumnTile = 7;

// The rows of the window whose weights, or sums, are in registers at a time: what 128 have room for.
template <class T, int K>
constexpr int kWindowRows = sizeof(T) == 4 ? 3 : std::min(K, K == 7 ? 4 : 5);

// Threads next to each other own neighboring channels; a slot of them walks over the column tiles of the
// grid.
template <int D>
struct Lanes {
    static constexpr int kPerRow = std::min(D / 2, kWarpSize), kChannels = 2 * kPerRow;

    CK_DEVICE Lanes()
        : channel(thread_index() % kPerRow * 2),
          slot(thread_index() / kPerRow),
          slots(block_size() / kPerRow) {}

    int channel, slot, slots;
};

// Calls visit(y, x) for every column tile of the grid that the thread's slot has. Neighboring slots take
// neighboring column tiles, although half warps then meet in some banks: a warp executes the window's rows
// that either half has inside of the grid, and for column tiles further apart those are more (counted:
// bench/NOTES.md).
template <int D, class Visit>
CK_DEVICE void for_each_column_tile(const Lanes<D>& lanes, const ContextAggregationShape& shape,
                                    Visit visit) {
    const auto per_row = static_cast<unsigned>(ceil_div(shape.width, kColumnTile));
    const unsigned count = shape.height * per_row;
    CK_NO_UNROLL
    for (unsigned column_tile = lanes.slot; column_tile < count; column_tile += lanes.slots) {
        visit(static_cast<int>(column_tile / per_row), static_cast<int>(column_tile % per_row) * kColumnTile);
    }
}

// Starts to copy the windows of the channels from `first_channel` on into shared memory. `weight` is
// (head_dim, taps); windows of channels that do not exist are zeros.
template <int D>
CK_DEVICE void load_windows(float* windows, const float* weight, int first_channel, int head_dim, int taps) {
    load_floats(windows, weight + first_channel * taps, (head_dim - first_channel) * taps,
                window_channels(D) * taps);
    copy_async_commit();
}

// Two channels of the tokens of row y of the grid in the column tile from x on, and of `Halo` tokens on
// either side; zeros outside of the grid. Full: the width is a multiple of a column tile, which leaves two
// conditions. A halo is narrower.
template <int Pitch, bool Full, int Halo, class T>
CK_DEVICE void load_column_tile(Float2 (&column_tile)[kColumnTile + 2 * Halo], const T* channels,
                                const ContextAggregationShape& shape, int y, int x) {
    static_assert(Halo < kColumnTile);
    const T* const row = channels + (y * shape.width + x) * Pitch;
    CK_UNROLL
    for (int i = -Halo; i < kColumnTile + Halo; ++i) {
        const bool inside = i < 0  ? x > 0
                            : Full ? i < kColumnTile || x + kColumnTile < shape.width
                                   : x + i < shape.width;
        column_tile[i + Halo] = {0.f, 0.f};
        if (inside) column_tile[i + Halo] = read_pair(row + i * Pitch);
    }
}

// Writes `count` tokens of a column tile, as many of the two channels as there are; `Elements` at a time.
template <int Elements, class T>
CK_DEVICE void store_column_tile(T* out, int64_t stride, const Float2 (&column_tile)[kColumnTile], int count,
                                 int channels) {
    if (channels <= 0) return;
    CK_UNROLL
    for (int i = 0; i < kColumnTile; ++i) {
        if (i >= count) continue;
        if constexpr (Elements == 2) {
            write_pair(out + i * stride, column_tile[i].x, column_tile[i].y);
        } else {
            out[i * stride] = from_float<T>(column_tile[i].x);
            if (channels > 1) out[i * stride + 1] = from_float<T>(column_tile[i].y);
        }
    }
}

// Adds up what the warps hold for the same channels, in the order of the warps, and writes it to `partials`
// (Count, channels), whose rows are `stride` apart. `smem_scratch` is for Capacity floats of every warp.
template <int D, int Capacity, int Count>
CK_DEVICE void reduce_over_warps(const float (&sums)[Count][2], int channels, float* smem_scratch,
                                 float* partials, int stride) {
    constexpr int kChannels = Lanes<D>::kChannels, kPerRow = Lanes<D>::kPerRow;
    constexpr int kAtOnce = std::min(Capacity / kChannels, Count);
    static_assert(kAtOnce >= 1);
    float* const own = smem_scratch + warp() * (kAtOnce * kChannels);
    CK_UNROLL
    for (int begin = 0; begin < Count; begin += kAtOnce) {
        sync_threads();
        CK_UNROLL
        for (int i = begin; i < std::min(begin + kAtOnce, Count); ++i) {
            float* const row = own + (i - begin) * kChannels;
            if constexpr (kPerRow == kWarpSize) {
                write_pair(row + 2 * lane(), sums[i][0], sums[i][1]);
            } else {  // two slots in the warp: each keeps one of the two channels
                static_assert(kPerRow == kWarpSize / 2);
                const bool upper = lane() >= kPerRow;
                const float first = sums[i][0], second = sums[i][1];
                const float other = shuffle_xor(upper ? first : second, kPerRow);
                row[lane() % kPerRow * 2 + upper] = (upper ? second : first) + other;
            }
        }
        sync_threads();
        const int end = std::min(kAtOnce, Count - begin) * kChannels;
        CK_NO_UNROLL
        for (int i = thread_index(); i < end; i += block_size()) {
            const int channel = i % kChannels;
            if (channel >= channels) continue;
            float sum = 0;
            CK_NO_UNROLL
            for (int warp = 0; warp < block_size() / kWarpSize; ++warp) {
                sum += smem_scratch[warp * (kAtOnce * kChannels) + i];
            }
            partials[(begin + i / kChannels) * stride + channel] = sum;
        }
    }
}

// The sums over the tokens of dy[i] v[i shifted by the tap], for the window's rows from FirstRow on, as many
// as are taken at a time; the last ones take those of dy[i], the bias', with them.
template <int K, bool Full, int FirstRow, class T, int D>
CK_DEVICE void weight_and_bias_gradient(const LocalHead<T>& head, int first_channel) {
    constexpr int P = kPitch<T, D>, kRows = std::min(kWindowRows<T, K>, K - FirstRow);
    constexpr bool kLast = FirstRow + kRows == K;
    const ContextAggregationShape& shape = head.shape;
    const Lanes<D> lanes;
    const int channel = first_channel + lanes.channel;
    constexpr int kBias = kRows * K;  // behind the taps
    float sums[kRows * K + kLast][2] = {};
    for_each_column_tile(lanes, shape, [&](int y, int x) {
        Float2 grad[kColumnTile], values[kColumnTile + K - 1];
        load_column_tile<P, Full, 0>(grad, head.grad_out + channel, shape, y, x);
        CK_UNROLL
        for (int row = 0; row < kRows; ++row) {
            const int source = y + FirstRow + row - K / 2;
            if (source < 0 || source >= shape.height) continue;
            load_column_tile<P, Full, K / 2>(values, head.value + channel, shape, source, x);
            CK_UNROLL
            for (int tap = 0; tap < K; ++tap) {
                CK_UNROLL
                for (int j = 0; j < kColumnTile; ++j) {
                    sums[row * K + tap][0] += grad[j].x * values[j + tap].x;
                    sums[row * K + tap][1] += grad[j].y * values[j + tap].y;
                }
            }
        }
        if constexpr (kLast) {
            CK_UNROLL
            for (int j = 0; j < kColumnTile; ++j) {
                sums[kBias][0] += grad[j].x;
                sums[kBias][1] += grad[j].y;
            }
        }
    });
    reduce_over_warps<D, kTile * kPitch<T, D>>(sums, shape.head_dim - first_channel, head.smem_scratch,
                                               head.partials + FirstRow * K * shape.head_dim + first_channel,
                                               shape.head_dim);
    if constexpr (!kLast) weight_and_bias_gradient<K, Full, FirstRow + kRows, T, D>(head, first_channel);
}

// dv of two channels: adds the window's rows from FirstRow on; the last ones write the sum where dv belongs.
template <int K, bool Full, int FirstRow, class T, int D>
CK_DEVICE void value_gradient_rows(const LocalHead<T>& head, int first_channel) {
    constexpr int P = kPitch<T, D>, kRows = std::min(kWindowRows<T, K>, K - FirstRow);
    const ContextAggregationShape& shape = head.shape;
    const Lanes<D> lanes;
    const int channel = first_channel + lanes.channel;
    const float* const own_windows = head.windows + lanes.channel * (K * K) + FirstRow * K;
    Float2 window[kRows * K];
    CK_UNROLL
    for (int tap = 0; tap < kRows * K; ++tap) window[tap] = {own_windows[tap], own_windows[K * K + tap]};
    for_each_column_tile(lanes, shape, [&](int y, int x) {
        const int first_token = y * shape.width + x;
        Float2 grad[kColumnTile + K - 1], total[kColumnTile];
        load_column_tile<P, Full, 0>(total, head.smem_scratch + channel, shape, y, x);
        CK_UNROLL
        for (int row = 0; row < kRows; ++row) {
            const int source = y + K / 2 - (FirstRow + row);
            if (source < 0 || source >= shape.height) continue;
            load_column_tile<P, Full, K / 2>(grad, head.grad_out + channel, shape, source, x);
            CK_UNROLL
            for (int tap = 0; tap < K; ++tap) {
                CK_UNROLL
                for (int j = 0; j < kColumnTile; ++j) {
                    total[j].x += window[row * K + tap].x * grad[j + K - 1 - tap].x;
                    total[j].y += window[row * K + tap].y * grad[j + K - 1 - tap].y;
                }
            }
        }
        const int count = Full ? kColumnTile : shape.width - x;  // or more
        if constexpr (FirstRow + kRows < K) {
            store_column_tile<2>(head.smem_scratch + first_token * P + channel, P, total, count, 2);
        } else if (head.out_access >= 2 * static_cast<int>(sizeof(T))) {
            store_column_tile<2>(head.out + first_token * head.out_stride + channel, head.out_stride, total,
                                 count, shape.head_dim - channel);
        } else {
            store_column_tile<1>(head.out + first_token * head.out_stride + channel, head.out_stride, total,
                                 count, shape.head_dim - channel);
        }
    });
    if constexpr (FirstRow + kRows < K)
        value_gradient_rows<K, Full, FirstRow + kRows, T, D>(head, first_channel);
}

template <int K, bool Full, class T, int D>
CK_DEVICE void backward(const LocalHead<T>& head) {
    static_assert(Lanes<D>::kChannels == window_channels(D));
    for (int channel = 0; channel < D; channel += Lanes<D>::kChannels) {
        if (channel > 0) {
            sync_threads();  // the windows before have been read
            load_windows<D>(head.windows, head.weight, channel, head.shape.head_dim, K * K);
            copy_async_wait<0>();
            sync_threads();
        }
        value_gradient_rows<K, Full, 0, T, D>(head, channel);
    }
    for (int channel = 0; channel < D && head.partials; channel += Lanes<D>::kChannels) {
        weight_and_bias_gradient<K, Full, 0, T, D>(head, channel);
    }
}

// Windows whose weights are too many for registers and shared memory: token by token, weights from memory.
template <int K, class T, int D>
CK_DEVICE void wide_value_gradient(const LocalHead<T>& head, int first_channel) {
    constexpr int P = kPitch<T, D>;
    const ContextAggregationShape& shape = head.shape;
    const Lanes<D> lanes;
    const int channel = first_channel + lanes.channel, channels = shape.head_dim - channel;
    const float* const weight = head.weight + channel * (K * K);
    CK_NO_UNROLL
    for (int token = lanes.slot; token < shape.height * shape.width; token += lanes.slots) {
        const int y = token / shape.width, x = token % shape.width;
        Float2 total = read_pair(head.smem_scratch + token * P + channel);
        CK_NO_UNROLL
        for (int tap = 0; tap < K * K && channels > 0; ++tap) {
            const int row = y + K / 2 - tap / K, column = x + K / 2 - tap % K;
            if (row < 0 || row >= shape.height || column < 0 || column >= shape.width) continue;
            const Float2 grad = read_pair(head.grad_out + (row * shape.width + column) * P + channel);
            total.x += weight[tap] * grad.x;
            if (channels > 1) total.y += weight[K * K + tap] * grad.y;
        }
        T* const out = head.out + token * head.out_stride + channel;
        if (channels > 1 && head.out_access >= 2 * static_cast<int>(sizeof(T))) {
            write_pair(out, total.x, total.y);
        } else {
            if (channels > 0) out[0] = from_float<T>(total.x);
            if (channels > 1) out[1] = from_float<T>(total.y);
        }
    }
}

// A row of the window at a time, and at last the bias.
template <int K, class T, int D>
CK_DEVICE void wide_weight_and_bias_gradient(const LocalHead<T>& head, int first_channel) {
    constexpr int P = kPitch<T, D>;
    const ContextAggregationShape& shape = head.shape;
    const Lanes<D> lanes;
    const int channel = first_channel + lanes.channel, tokens = shape.height * shape.width;
    const auto leave = [&]<int Count>(const float (&sums)[Count][2], int row) {
        reduce_over_warps<D, kTile * P>(sums, shape.head_dim - first_channel, head.smem_scratch,
                                        head.partials + row * shape.head_dim + first_channel, shape.head_dim);
    };
    CK_NO_UNROLL
    for (int ky = 0; ky < K; ++ky) {
        float sums[K][2] = {};
        CK_NO_UNROLL
        for (int token = lanes.slot; token < tokens; token += lanes.slots) {
            const int row = token / shape.width + ky - K / 2, x = token % shape.width;
            if (row < 0 || row >= shape.height) continue;
            const Float2 grad = read_pair(head.grad_out + token * P + channel);
            const T* const values = head.value + (row * shape.width + x - K / 2) * P + channel;
            CK_UNROLL
            for (int kx = 0; kx < K; ++kx) {
                if (x + kx < K / 2 || x + kx - K / 2 >= shape.width) continue;
                const Float2 value = read_pair(values + kx * P);
                sums[kx][0] += grad.x * value.x;
                sums[kx][1] += grad.y * value.y;
            }
        }
        leave(sums, ky * K);
    }
    float bias[1][2] = {};
    CK_NO_UNROLL
    for (int token = lanes.slot; token < tokens; token += lanes.slots) {
        const Float2 grad = read_pair(head.grad_out + token * P + channel);
        bias[0][0] += grad.x;
        bias[0][1] += grad.y;
    }
    leave(bias, K * K);
}

template <int K, class T, int D>
CK_DEVICE void wide_backward(const LocalHead<T>& head) {
    for (int channel = 0; channel < D; channel += Lanes<D>::kChannels) {
        wide_value_gradient<K, T, D>(head, channel);
    }
    for (int channel = 0; channel < D && head.partials; channel += Lanes<D>::kChannels) {
        wide_weight_and_bias_gradient<K, T, D>(head, channel);
    }
}

}  // namespace local

// dv: to what `smem_scratch` has the transposed local term of dy is added, and the sum rounded once. Then, if
// wanted, the partial gradients of the local weight and bias. All threads of the block take part.
template <int K, class T, int D>
CK_DEVICE void local_backward(const LocalHead<T>& head) {
    if constexpr (K == kWideWindow) {
        local::wide_backward<K, T, D>(head);
    } else if (head.shape.width % local::kColumnTile == 0) {
        local::backward<K, true, T, D>(head);
    } else {
        local::backward<K, false, T, D>(head);
    }
}

}  // namespace ck::cuda
