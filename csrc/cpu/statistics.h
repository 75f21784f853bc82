// SPDX-License-Identifier: MIT
// Sums and sums of squares by channel, of pixels that were just written and are still in the first-level
// cache.
//
// Pixels are summed in registers, few at a time, then their sums, and the sums of these in double: one long
// float sum would lose digits that the variance, a difference of the two statistics, needs.
#pragma once

#include "cpu/convert.h"
#include "cpu/parallel.h"

namespace ck::CK_ISA {

// Pixels in the shortest sums: with as many of them the two levels lose least, and have little more to add.
constexpr int kShortSum = 8;

// A task's sums are two rows of this many doubles, of values and of squares: whole cache lines, which no
// other task writes to.
inline int64_t statistics_stride(int channels) { return round_up(channels, 64 / sizeof(double)); }

// Adds `count` pixels, Vectors vectors of channels of each, to the sums there; but not the first `counted`
// lanes, which are there already.
template <class V, int Vectors, class T>
CK_INLINE void add_vectors(const T* pixels, int64_t pixel_stride, int64_t count, int counted, double* sums,
                           int64_t stride) {
    constexpr int L = kLanesOf<V>;
    V sum[Vectors] = {}, square_sum[Vectors] = {};
    for (int64_t first = 0; first < count; first += kShortSum) {
        const int64_t end = count - first < kShortSum ? count : first + kShortSum;
        V short_sum[Vectors] = {}, short_square_sum[Vectors] = {};
        for (int64_t pixel = first; pixel < end; ++pixel) {
#pragma GCC unroll 8
            for (int v = 0; v < Vectors; ++v) {
                const V value = load<V>(pixels + pixel * pixel_stride + v * L);
                short_sum[v] += value;
                short_square_sum[v] += value * value;
            }
        }
#pragma GCC unroll 8
        for (int v = 0; v < Vectors; ++v) {
            sum[v] += short_sum[v];
            square_sum[v] += short_square_sum[v];
        }
    }
    const V lanes = lane_numbers<V>(MakeLaneIndices<L>{});
    const auto add = [&](double* target, V value) __attribute__((always_inline)) {
        const V added = lanes < static_cast<Element<V>>(counted) ? V{} : value;
        Vec<double, L>
            total;  // wider than a register: the compiler warns of functions that take or return it
        __builtin_memcpy(&total, target, sizeof(total));
        total += __builtin_convertvector(added, Vec<double, L>);
        __builtin_memcpy(target, &total, sizeof(total));
    };
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; ++v) {
        add(sums + v * L, sum[v]);
        add(sums + stride + v * L, square_sum[v]);
    }
}

// The same for `channels` channels; `stride` is that of the sums. A last vector that is not full is moved
// back to end with the channels.
template <class T>
void add_pixels(const T* pixels, int64_t pixel_stride, int64_t count, int channels, double* sums,
                int64_t stride) {
    using A = Accumulator<T>;
    constexpr int L = kLanes<A>;
    constexpr int vectors = 4;  // two sums each: enough of them to hide how long an addition takes
    int channel = 0;
    for (; channel + vectors * L <= channels; channel += vectors * L) {
        add_vectors<Vec<A>, vectors>(pixels + channel, pixel_stride, count, 0, sums + channel, stride);
    }
    for (; channel + L <= channels; channel += L) {
        add_vectors<Vec<A>, 1>(pixels + channel, pixel_stride, count, 0, sums + channel, stride);
    }
    if (channel == channels) return;
    if (channels >= L) {
        const int last = channels - L;
        add_vectors<Vec<A>, 1>(pixels + last, pixel_stride, count, channel - last, sums + last, stride);
    } else {
        for (; channel < channels; ++channel) {
            add_vectors<Vec<A, 1>, 1>(pixels + channel, pixel_stride, count, 0, sums + channel, stride);
        }
    }
}

// Adds up the tasks' sums in order.
template <class A>
void reduce_statistics(const double* sums, int64_t tasks, int channels, A* sum, A* square_sum, int threads) {
    constexpr int L = kLanes<double>;
    const int64_t stride = statistics_stride(channels);
    A* const results[] = {sum, square_sum};
    parallel_for(threads, stride / L, [&](int64_t index, int) {
        const int64_t first = index * L;
        for (int which = 0; which < 2; ++which) {
            Vec<double> total = {};
            for (int64_t task = 0; task < tasks; ++task) {
                total += load<Vec<double>>(sums + (2 * task + which) * stride + first);
            }
            for (int64_t channel = first; channel < first + L && channel < channels; ++channel) {
                results[which][channel] = static_cast<A>(total[channel - first]);
            }
        }
    });
}

}  // namespace ck::CK_ISA
