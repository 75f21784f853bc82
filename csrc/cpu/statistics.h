// SPDX-License-Identifier: MIT
// Sum and sum of squared deviations from the mean (M2) by channel, of pixels that were just written and are
// still in the first-level cache.
//
// A task sums y - pivot and its square, the pivot being the mean of a few of its pixels: a variance from the
// sums of y and y² would lose digits where the mean is large beside the deviation. Pixels are summed in
// registers, few at a time, then their sums, and the sums of these in double. The tasks' sums are merged in
// double.
#pragma once

#include "cpu/convert.h"
#include "cpu/parallel.h"

namespace ck::CK_ISA {

// Pixels in the shortest sums: with as many of them the two levels lose least, and have little more to add.
constexpr int kShortSum = 8;

// The rows of a task's sums, doubles by channel: its pivot, Σ (y - pivot), Σ (y - pivot)².
constexpr int kStatisticsRows = 3;

// From row to row: whole cache lines, which no other task writes to.
inline int64_t statistics_stride(int channels) { return round_up(channels, 64 / sizeof(double)); }
inline int64_t statistics_size(int channels) { return kStatisticsRows * statistics_stride(channels); }

// Adds `count` pixels, Vectors vectors of channels of each, to the sums there, whose rows are `stride` apart;
// but not the first `counted` lanes, which are there already.
template <class V, int Vectors, class T>
CK_INLINE void add_vectors(const T* pixels, int64_t pixel_stride, int64_t count, int counted, double* sums,
                           int64_t stride) {
    constexpr int L = kLanesOf<V>;
    using Wide = Vec<double, L>;  // can be wider than a register
    V pivot[Vectors], sum[Vectors] = {}, square_sum[Vectors] = {};
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; ++v) {
        Wide wide;
        __builtin_memcpy(&wide, sums + v * L, sizeof(wide));
        pivot[v] = __builtin_convertvector(wide, V);
    }
    for (int64_t first = 0; first < count; first += kShortSum) {
        const int64_t end = count - first < kShortSum ? count : first + kShortSum;
        V short_sum[Vectors] = {}, short_square_sum[Vectors] = {};
        for (int64_t pixel = first; pixel < end; ++pixel) {
#pragma GCC unroll 8
            for (int v = 0; v < Vectors; ++v) {
                const V value = load<V>(pixels + pixel * pixel_stride + v * L) - pivot[v];
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
        Wide total;  // the compiler warns of functions that take or return it
        __builtin_memcpy(&total, target, sizeof(total));
        total += __builtin_convertvector(added, Wide);
        __builtin_memcpy(target, &total, sizeof(total));
    };
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; ++v) {
        add(sums + stride + v * L, sum[v]);
        add(sums + 2 * stride + v * L, square_sum[v]);
    }
}

// The same for `channels` channels. A last vector that is not full is moved back to end with the channels.
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

// Starts a task's sums about the mean of a few of these pixels, of which none is added yet: one pixel alone
// could be far from the others, as those at the border of an image are. It is rounded as they are:
// differences of 16-bit numbers are then exact.
template <class T>
void begin_statistics(const T* pixels, int64_t pixel_stride, int64_t count, int channels, double* sums,
                      int64_t stride) {
    using A = Accumulator<T>;
    double *const pivot = sums, *const sum = sums + stride, *const square_sum = sums + 2 * stride;
    for (int channel = 0; channel < channels; ++channel) pivot[channel] = sum[channel] = 0;
    const int64_t step = ceil_div(count, kShortSum), taken = ceil_div(count, step);
    add_pixels(pixels, step * pixel_stride, taken, channels, sums, stride);
    for (int channel = 0; channel < channels; ++channel) {
        const A mean = rounded<T>(Vec<A, 1>{static_cast<A>(sum[channel] / taken)})[0];
        pivot[channel] = mean - mean == 0 ? mean : 0;  // infinite sums are not to become NaN
        sum[channel] = square_sum[channel] = 0;
    }
}

// Merges the tasks' sums in order, about the first task's pivot; `pixels(task)` says how many a task has
// summed.
template <class A, class Pixels>
void reduce_statistics(const double* sums, int64_t tasks, int channels, const Pixels& pixels, A* sum, A* m2,
                       int threads) {
    constexpr int L = kLanes<double>;
    using V = Vec<double>;
    const int64_t stride = statistics_stride(channels);
    parallel_for(threads, stride / L, [&](int64_t index, int) {
        const int64_t first = index * L;
        const V pivot = load<V>(sums + first);
        V total = {}, square_total = {};
        double count = 0;
        for (int64_t task = 0; task < tasks; ++task) {
            const double* const row = sums + task * kStatisticsRows * stride + first;
            const V shift = load<V>(row) - pivot, task_sum = load<V>(row + stride);
            const double task_count = static_cast<double>(pixels(task));
            const V shifted = task_count * shift;
            total += task_sum + shifted;
            square_total += load<V>(row + 2 * stride) + shift * (2.0 * task_sum + shifted);
            count += task_count;
        }
        const V deviations = square_total - total * total / count;
        for (int64_t channel = first; channel < first + L && channel < channels; ++channel) {
            const int64_t lane = channel - first;
            sum[channel] = static_cast<A>(count * pivot[lane] + total[lane]);
            m2[channel] = static_cast<A>(deviations[lane] < 0 ? 0 : deviations[lane]);
        }
    });
}

}  // namespace ck::CK_ISA
