// SPDX-License-Identifier: MIT
// The local term's share of the backward, on tokens in shared memory: a thread owns two channels and slides
// along the rows of the grid, so that window and sums stay in its registers.
#pragma once

#include <algorithm>

#include "common/device.h"
#include "context_aggregation/cuda/backward_tile.h"
#include "context_aggregation/params.h"

namespace ck::cuda {

namespace local {

// Tokens of a row that a thread takes at a time. Grids of 7, 14, 28 and 56 have no remainder.
constexpr int kSpan = 7;

// The rows of the window that are in registers at a time; a 7 x 7 window takes two passes.
template <int K>
constexpr int kWindowRows = K == 7 ? 4 : K;

// Threads next to each other own neighboring channels; a slot of them walks over the spans of the grid.
template <int D>
struct Lanes {
    static constexpr int kPerRow = std::min(D / 2, kWarpSize), kChannels = 2 * kPerRow;
    static constexpr int kGroups = D / kChannels;  // one after the other

    CK_DEVICE explicit Lanes(Team team)
        : channel(team.thread % kPerRow * 2), slot(team.thread / kPerRow), slots(team.threads / kPerRow) {}

    int channel, slot, slots;
};

// The tokens of one row of the grid from x on, for two channels; zeros outside of the grid.
template <int Pitch, class T, int Count>
CK_DEVICE void load_span(Float2 (&span)[Count], const T* channels, const MixShape& shape, int y, int x) {
    const T* const row = channels + (y * shape.width + x) * Pitch;
    CK_UNROLL
    for (int i = 0; i < Count; ++i) {
        span[i] = {0.f, 0.f};
        if (x + i >= 0 && x + i < shape.width) span[i] = read_pair(row + i * Pitch);
    }
}

// Adds up what the warps of a team hold for the same channels, in the order of the warps, and writes it to
// `partials` (head_dim, columns). `scratch` has Capacity floats for every warp.
template <int D, int Capacity, int Count>
CK_DEVICE void reduce_over_warps(const float (&sums)[Count][2], int first_channel, int head_dim,
                                 float* scratch, float* partials, int columns, Team team) {
    constexpr int kChannels = Lanes<D>::kChannels, kPerRow = Lanes<D>::kPerRow;
    constexpr int kAtOnce = std::min(Capacity / kChannels, Count);
    static_assert(kAtOnce >= 1);
    float* const own = scratch + team.thread / kWarpSize * (kAtOnce * kChannels);
    CK_UNROLL
    for (int begin = 0; begin < Count; begin += kAtOnce) {
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
        const int end = partials ? std::min(kAtOnce, Count - begin) * kChannels : 0;
        for (int i = team.thread; i < end; i += team.threads) {
            const int channel = first_channel + i % kChannels;
            float sum = 0;
            for (int warp = 0; warp < team.threads / kWarpSize; ++warp) {
                sum += scratch[warp * (kAtOnce * kChannels) + i];
            }
            if (channel < head_dim) partials[channel * columns + begin + i / kChannels] = sum;
        }
        sync_threads();
    }
}

// The window's rows from FirstRow on, as many as are taken at a time; the last ones take the bias with them.
template <int K, int FirstRow, class T, int D, int Capacity>
CK_DEVICE void weight_gradient_rows(const T* value, const T* grad_out, const MixShape& shape,
                                    int first_channel, float* scratch, float* partials, Team team) {
    constexpr int kRows = std::min(kWindowRows<K>, K - FirstRow);
    constexpr bool kLast = FirstRow + kRows == K;
    const Lanes<D> lanes(team);
    const int channel = first_channel + lanes.channel;
    const int spans = static_cast<int>(ceil_div(shape.width, kSpan));
    float sums[kRows * K + kLast][2] = {};
    for (int i = lanes.slot; i < shape.height * spans; i += lanes.slots) {
        const int y = i / spans, x = i % spans * kSpan;
        Float2 grad[kSpan], values[kSpan + K - 1];
        load_span<kPitch<T, D>>(grad, grad_out + channel, shape, y, x);
        CK_UNROLL
        for (int row = 0; row < kRows; ++row) {
            const int source = y + FirstRow + row - K / 2;
            if (source < 0 || source >= shape.height) continue;
            load_span<kPitch<T, D>>(values, value + channel, shape, source, x - K / 2);
            CK_UNROLL
            for (int tap = 0; tap < K; ++tap) {
                CK_UNROLL
                for (int j = 0; j < kSpan; ++j) {
                    sums[row * K + tap][0] += grad[j].x * values[j + tap].x;
                    sums[row * K + tap][1] += grad[j].y * values[j + tap].y;
                }
            }
        }
        if constexpr (kLast) {
            CK_UNROLL
            for (int j = 0; j < kSpan; ++j) {
                sums[kRows * K][0] += grad[j].x;
                sums[kRows * K][1] += grad[j].y;
            }
        }
    }
    reduce_over_warps<D, Capacity>(sums, first_channel, shape.head_dim, scratch,
                                   partials ? partials + FirstRow * K : nullptr, K * K + 1, team);
}

// Adds the window's rows from FirstRow on to `sums`; the last ones round the result to `out`.
template <int K, int FirstRow, int SumPitch, class T, int D>
CK_DEVICE void value_gradient_rows(const T* grad_out, const MixShape& shape, const float* weight, int channel,
                                   float* sums, T* out, const Lanes<D>& lanes) {
    constexpr int kRows = std::min(kWindowRows<K>, K - FirstRow);
    const int spans = static_cast<int>(ceil_div(shape.width, kSpan));
    Float2 window[kRows * K];
    CK_UNROLL
    for (int tap = 0; tap < kRows * K; ++tap) {
        const float* const first = weight + channel * (K * K) + FirstRow * K + tap;
        window[tap] = {channel < shape.head_dim ? first[0] : 0.f,
                       channel + 1 < shape.head_dim ? first[K * K] : 0.f};
    }
    for (int i = lanes.slot; i < shape.height * spans; i += lanes.slots) {
        const int y = i / spans, x = i % spans * kSpan, first_token = y * shape.width + x;
        Float2 grad[kSpan + K - 1], total[kSpan];
        load_span<SumPitch>(total, sums + channel, shape, y, x);
        CK_UNROLL
        for (int row = 0; row < kRows; ++row) {
            const int source = y + K / 2 - (FirstRow + row);
            if (source < 0 || source >= shape.height) continue;
            load_span<kPitch<T, D>>(grad, grad_out + channel, shape, source, x - K / 2);
            CK_UNROLL
            for (int tap = 0; tap < K; ++tap) {
                CK_UNROLL
                for (int j = 0; j < kSpan; ++j) {
                    total[j].x += window[row * K + tap].x * grad[j + K - 1 - tap].x;
                    total[j].y += window[row * K + tap].y * grad[j + K - 1 - tap].y;
                }
            }
        }
        CK_UNROLL
        for (int j = 0; j < kSpan; ++j) {
            if (x + j >= shape.width) continue;
            if constexpr (FirstRow + kRows == K) {
                write_pair(out + (first_token + j) * kPitch<T, D> + channel, total[j].x, total[j].y);
            } else {
                write_pair(sums + (first_token + j) * SumPitch + channel, total[j].x, total[j].y);
            }
        }
    }
}

}  // namespace local

// One head's sums of dy[i] v[i shifted by the tap], and of dy[i], over its tokens, to `partials` (head_dim,
// K * K + 1). All threads of the block take part; `partials` is null where a team has no head.
template <int K, class T, int D, int Capacity>
CK_DEVICE void local_weight_gradient(const T* value, const T* grad_out, const MixShape& shape, float* scratch,
                                     float* partials, Team team) {
    for (int channel = 0; channel < D; channel += local::Lanes<D>::kChannels) {
        local::weight_gradient_rows<K, 0, T, D, Capacity>(value, grad_out, shape, channel, scratch, partials,
                                                          team);
        if constexpr (local::kWindowRows<K> < K) {
            local::weight_gradient_rows<K, local::kWindowRows<K>, T, D, Capacity>(
                value, grad_out, shape, channel, scratch, partials, team);
        }
    }
}

// out[j] = sums[j] + the transposed local term of dy, rounded once. `weight` (head_dim, K * K) is in global
// memory; `sums` (rows of SumPitch) is overwritten.
template <int K, int SumPitch, class T, int D>
CK_DEVICE void local_value_gradient(const T* grad_out, const MixShape& shape, const float* weight,
                                    float* sums, T* out, Team team) {
    const local::Lanes<D> lanes(team);
    for (int first = 0; first < D; first += local::Lanes<D>::kChannels) {
        const int channel = first + lanes.channel;
        local::value_gradient_rows<K, 0, SumPitch, T, D>(grad_out, shape, weight, channel, sums, out, lanes);
        if constexpr (local::kWindowRows<K> < K) {
            local::value_gradient_rows<K, local::kWindowRows<K>, SumPitch, T, D>(grad_out, shape, weight,
                                                                                 channel, sums, out, lanes);
        }
    }
}

}  // namespace ck::cuda
