// SPDX-License-Identifier: MIT
// The local term from values in shared memory. Taking the taps of every output one by one would read each
// value K * K times, more than shared memory can give. Here a thread owns two neighboring channels, keeps
// their weights in registers and walks along an image row with K sums under way: each value is read once per
// row of the window.
#pragma once

#include <type_traits>

#include "common/device.h"

namespace ck::cuda {

// Two neighboring channels as they lie in shared memory.
template <class T>
using ChannelPair = std::conditional_t<sizeof(T) == 4, Vec<float, 2>, Vec<uint32_t, 1>>;

template <class T>
CK_DEVICE ChannelPair<T> load_pair(const T* address) {
    if constexpr (sizeof(T) == 4) {
        return load<2>(address);
    } else {
        return load<1>(reinterpret_cast<const uint32_t*>(address));
    }
}
template <class T>
CK_DEVICE Float2 to_floats(const ChannelPair<T>& pair) {
    if constexpr (sizeof(T) == 4) {
        return {pair.data[0], pair.data[1]};
    } else {
        return unpack<T>(pair.data[0]);
    }
}

// The part of an image row that a thread walks along, and the grid it belongs to.
struct RowSegment {
    int y, begin, end;
    int height, width;
};

// For the columns of the segment, from left to right, calls `take` with
//     start + sum of weight[s, t] * value[y + s - K / 2, x + t - K / 2],   s in [FirstRow, FirstRow + Rows)
// for two channels. `values` and `weight` are those channels' in shared memory: of token 0, tokens `Pitch`
// elements apart, one token beyond the last may be read; and (2, K, K). Values outside of the grid are zeros.
template <class T, int K, int FirstRow, int Rows, int Pitch, class Take>
CK_DEVICE void walk_row(const T* values, const float* weight, const RowSegment& segment, Float2 start,
                        Take&& take) {
    constexpr int kHalf = K / 2;
    Float2 taps[Rows][K];
    CK_UNROLL
    for (int s = 0; s < Rows; ++s) {
        CK_UNROLL
        for (int t = 0; t < K; ++t) {
            const int tap = (FirstRow + s) * K + t;
            taps[s][t] = {weight[tap], weight[K * K + tap]};
        }
    }

    int x = segment.begin > kHalf ? segment.begin - kHalf : 0;
    const T* rows[Rows];  // at column x - u below
    bool inside[Rows];
    ChannelPair<T> next[Rows];
    CK_UNROLL
    for (int s = 0; s < Rows; ++s) {
        const int y = segment.y + FirstRow + s - kHalf;
        inside[s] = y >= 0 && y < segment.height;
        rows[s] = values + (y * segment.width + x) * Pitch;
        next[s] = {};  // stays zero for a row outside
        if (inside[s]) next[s] = load_pair<T>(rows[s]);
    }

    // At column x, sums[(u + j) % K] belongs to the output in column x - kHalf + j.
    Float2 sums[K];
    CK_UNROLL
    for (int j = 0; j < K; ++j) sums[j] = start;
    for (;;) {
        CK_UNROLL
        for (int u = 0; u < K; ++u, ++x) {
            if (x >= segment.end + kHalf) return;
            if (x < segment.width) {
                CK_UNROLL
                for (int s = 0; s < Rows; ++s) {
                    const Float2 value = to_floats<T>(next[s]);
                    if (inside[s]) next[s] = load_pair<T>(rows[s] + (u + 1) * Pitch);
                    CK_UNROLL
                    for (int j = 0; j < K; ++j) {
                        Float2& sum = sums[(u + j) % K];
                        sum.x += taps[s][K - 1 - j].x * value.x;
                        sum.y += taps[s][K - 1 - j].y * value.y;
                    }
                }
            }
            if (x >= segment.begin + kHalf) take(sums[u]);
            sums[u] = start;
        }
        CK_UNROLL
        for (int s = 0; s < Rows; ++s) rows[s] += K * Pitch;
    }
}

}  // namespace ck::cuda
