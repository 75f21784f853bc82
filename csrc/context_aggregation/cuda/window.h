// SPDX-License-Identifier: MIT
// The local term from values in shared memory. Taking the taps of every output one by one would read each
// value K * K times, more than shared memory can give. Here a thread owns two neighboring channels, keeps
// their weights in registers and walks along an image row with K sums under way: each value is read once per
// row of the window.
#pragma once

#include <type_traits>

#include "common/device.h"

namespace ck::cuda {

// Tokens of zeros in shared memory that stand for the rows outside of the grid: as many as a thread reads
// between two moves of its pointers, for the widest window.
constexpr int kZeroTokens = 8;

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

// Two channels of a head in shared memory: their values at token 0, tokens `Pitch` elements apart, and at
// kZeroTokens tokens of zeros; their weights, (2, K, K). What lies behind the last token may be read, not
// used.
template <class T>
struct WindowInput {
    const T* values;
    const T* zeros;
    const float* weight;
};

// The columns of image rows that a block computes; the same in all its threads, so that branches are uniform.
struct Columns {
    int begin, end;
    int height, width;  // of the grid
};

// For columns of row y, from left to right, calls take(x, sums, wanted) with
//     start + sum of weight[s, t] * value[y + s - K / 2, x + t - K / 2],   s in [FirstRow, FirstRow + Rows)
// for both channels. Values outside of the grid are zeros. Where not `wanted`, x is not among the columns
// asked for and the sums are not whole: that is a value rather than a branch around the call, to become a
// predicate.
template <class T, int K, int FirstRow, int Rows, int Pitch, class Take>
CK_DEVICE void walk_row(const WindowInput<T>& input, int y, const Columns& columns, Float2 start,
                        Take&& take) {
    constexpr int kHalf = K / 2;
    static_assert(K < kZeroTokens);
    Float2 taps[Rows][K];
    CK_UNROLL
    for (int s = 0; s < Rows; ++s) {
        CK_UNROLL
        for (int t = 0; t < K; ++t) {
            const int tap = (FirstRow + s) * K + t;
            taps[s][t] = {input.weight[tap], input.weight[K * K + tap]};
        }
    }

    int x = columns.begin > kHalf ? columns.begin - kHalf : 0;
    const T* rows[Rows];  // at column x - u below
    int step[Rows];
    ChannelPair<T> next[Rows];
    CK_UNROLL
    for (int s = 0; s < Rows; ++s) {
        const int row = y + FirstRow + s - kHalf;
        const bool inside = row >= 0 && row < columns.height;
        rows[s] = inside ? input.values + (row * columns.width + x) * Pitch : input.zeros;
        step[s] = inside ? K * Pitch : 0;
        next[s] = load_pair<T>(rows[s]);
    }

    // sums[j] belongs to the output in column x - kHalf + j. They move by one a step: in K steps, unrolled,
    // by so much that none has to move between registers.
    Float2 sums[K];
    CK_UNROLL
    for (int j = 0; j < K; ++j) sums[j] = start;
    const int last = (columns.end + kHalf < columns.width ? columns.end + kHalf : columns.width) - 1;
    const auto walk = [&] {
        for (;;) {
            CK_UNROLL
            for (int u = 0; u < K; ++u, ++x) {
                CK_UNROLL
                for (int s = 0; s < Rows; ++s) {
                    const Float2 value = to_floats<T>(next[s]);
                    next[s] = load_pair<T>(rows[s] + (u + 1) * Pitch);
                    CK_UNROLL
                    for (int j = 0; j < K; ++j) {
                        sums[j].x += taps[s][K - 1 - j].x * value.x;
                        sums[j].y += taps[s][K - 1 - j].y * value.y;
                    }
                }
                take(x - kHalf, sums[0], x - kHalf >= columns.begin);
                if (x == last) return;
                CK_UNROLL
                for (int j = 0; j < K - 1; ++j) sums[j] = sums[j + 1];
                sums[K - 1] = start;
            }
            CK_UNROLL
            for (int s = 0; s < Rows; ++s) rows[s] += step[s];
        }
    };
    walk();
    CK_UNROLL
    for (int j = 1; j <= kHalf; ++j) {
        const int column = last - kHalf + j;
        take(column, sums[j], column >= columns.begin && column < columns.end);
    }
}

}  // namespace ck::cuda
