// SPDX-License-Identifier: MIT
// The local term from values in shared memory. Taking the taps of every output one by one would read each
// value K * K times, more than shared memory can give. Here a thread owns two neighboring channels, keeps
// their weights in registers and walks along image rows with K sums under way: each value is read once per
// row of the window.
#pragma once

#include <type_traits>

#include "cuda/device.h"

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
// kZeroTokens tokens of zeros. What lies behind the last token is read, but not used.
template <class T, int Pitch>
struct WindowInput {
    const T* values;
    const T* zeros;
};

// The columns of image rows that a block computes; the same in all its threads, so that branches are uniform.
struct Columns {
    int begin, end;
    int height, width;  // of the grid
};

// The weights of two channels in rows [FirstRow, FirstRow + Rows) of a K x K window.
template <int K, int FirstRow, int Rows>
struct WindowTaps {
    Float2 taps[Rows][K];

    // From (2, K, K) in shared memory.
    CK_DEVICE explicit WindowTaps(const float* weight) {
        CK_UNROLL
        for (int i = 0; i < Rows * K; ++i) {
            const int tap = FirstRow * K + i;
            taps[i / K][i % K] = {weight[tap], weight[K * K + tap]};
        }
    }

    // For columns x of image row y, from left to right, calls take(x, sums, wanted) with
    //     start + sum over s, t of taps[s][t] * value[y + FirstRow + s - K / 2, x + t - K / 2]
    // for both channels; values outside of the grid are zeros. Where not `wanted`, x is no column asked for
    // and the sums mean nothing: a value rather than a branch around the call, to become a predicate.
    template <class T, int Pitch, class Take>
    CK_DEVICE void walk(const WindowInput<T, Pitch>& input, int y, const Columns& columns, Float2 start,
                        Take&& take) const {
        constexpr int kHalf = K / 2;
        // Ahead of their use by a column; pairs of float32 would take too many registers.
        constexpr int kAhead = sizeof(T) == 4 ? 0 : 1;
        static_assert(K < kZeroTokens, "kZeroTokens: more than a window has columns");
        int x = columns.begin > kHalf ? columns.begin - kHalf : 0;
        const T* rows[Rows];  // at column x - u below
        ChannelPair<T> next[Rows];
        CK_UNROLL
        for (int s = 0; s < Rows; ++s) {
            const int row = y + FirstRow + s - kHalf;
            const bool inside = row >= 0 && row < columns.height;
            rows[s] = inside ? input.values + (row * columns.width + x) * Pitch : input.zeros;
            if (kAhead > 0) next[s] = load_pair<T>(rows[s]);
        }

        // sums[j] belongs to the output in column x - kHalf + j. They move by one a step: in K steps,
        // unrolled, by so much that none has to move between registers.
        Float2 sums[K];
        CK_UNROLL
        for (int j = 0; j < K; ++j) sums[j] = start;
        const int last = (columns.end + kHalf < columns.width ? columns.end + kHalf : columns.width) - 1;
        const auto read_values = [&] {
            for (;;) {
                CK_UNROLL
                for (int u = 0; u < K; ++u, ++x) {
                    CK_UNROLL
                    for (int s = 0; s < Rows; ++s) {
                        const ChannelPair<T> ahead = load_pair<T>(rows[s] + (u + kAhead) * Pitch);
                        const Float2 value = to_floats<T>(kAhead > 0 ? next[s] : ahead);
                        next[s] = ahead;
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
                for (int s = 0; s < Rows; ++s) {
                    if (rows[s] != input.zeros) rows[s] += K * Pitch;
                }
            }
        };
        read_values();
        CK_UNROLL
        for (int j = 1; j <= kHalf; ++j) {
            const int column = last - kHalf + j;
            const bool wanted = column >= columns.begin && column < columns.end;
            take(column, sums[j], wanted);
        }
    }
};

}  // namespace ck::cuda
