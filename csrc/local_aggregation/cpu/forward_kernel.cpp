// SPDX-License-Identifier: MIT
// Forward of the depthwise operation; with the flipped weight, its input gradient. A task is a run of rows of
// one image, with all channels: memory is read front to back, and the rows of a window come from the cache.
// Tasks depend on the shape alone and their sums are added in order: statistics do not depend on the threads.
#include "cpu/parallel.h"
#include "cpu/simd.h"
#include "cpu/statistics.h"
#include "cpu/workspace.h"
#include "local_aggregation/cpu/launch.h"
#include "local_aggregation/cpu/window.h"

namespace ck::CK_ISA {
namespace {

// Rows of a task; more read fewer rows twice, fewer share the work better among threads.
constexpr int kTaskRows = 8;

// Bytes of output, and pixels, between two visits to the statistics: a part of the first-level cache, and few
// numbers for one float sum.
constexpr int64_t kRunBytes = 32 << 10;
constexpr int64_t kRunPixels = 64;

// The pixels of such a run: whole rows or, of a row, whole blocks.
int64_t run_pixels(int width, int64_t pixel_bytes) {
    int64_t fitting = kRunBytes / pixel_bytes;
    if (fitting > kRunPixels) fitting = kRunPixels;
    if (fitting >= width) return fitting / width * width;
    return fitting > kColumns ? fitting / kColumns * kColumns : kColumns;
}

// window_pixels for the pixels begin … end - 1 from the start of a row on; their statistics go to `sums`.
template <class T>
void window_pixels_and_sums(const Window<T>& window, int64_t begin, int64_t end, T* out, int64_t out_stride,
                            double* sums) {
    const int64_t stride = statistics_stride(window.channels);
    const int64_t run = run_pixels(window.width, window.channels * static_cast<int64_t>(sizeof(T)));
    for (int64_t pixel = begin; pixel < end;) {
        const int64_t rest = run < window.width ? window.width - pixel % window.width : end - pixel;
        const int64_t count = run < rest ? run : rest;
        window_pixels(window, pixel, pixel + count, nullptr, 0, out, out_stride);
        if (pixel == begin) begin_statistics(out, out_stride, count, window.channels, sums, stride);
        add_pixels(out, out_stride, count, window.channels, sums, stride);
        out += count * out_stride;
        pixel += count;
    }
}

template <class T>
void forward(const LocalAggregationForward& params, const ChannelStatistics& statistics, int threads) {
    using A = Accumulator<T>;
    const LocalAggregationShape& shape = params.shape;
    const int taps = shape.kernel_height * shape.kernel_width;
    const int64_t padded = round_up(shape.channels, kLanes<A>);
    const int64_t tasks_per_image = ceil_div(shape.height, kTaskRows), tasks = shape.batch * tasks_per_image;
    const int64_t sums_count = statistics.sum ? statistics_size(shape.channels) : 0;
    double* sums =
        static_cast<double*>(workspace(tasks * sums_count * sizeof(double) + taps * padded * sizeof(A)));
    A* weight = reinterpret_cast<A*>(sums + tasks * sums_count);
    constexpr int block = 4 * kLanes<A>;
    parallel_for(threads, ceil_div(shape.channels, block), [&](int64_t index, int) {
        const int first = static_cast<int>(index) * block;
        const int channels = shape.channels - first < block ? shape.channels - first : block;
        pack_window_weight(static_cast<const A*>(params.weight) + first * taps, channels, taps, false,
                           weight + first, padded);
    });
    const auto first_row = [&](int64_t task) { return task % tasks_per_image * kTaskRows; };
    const auto rows = [&](int64_t task) {
        const int64_t rest = shape.height - first_row(task);
        return rest < kTaskRows ? rest : kTaskRows;
    };
    parallel_for(threads, tasks, [&](int64_t index, int) {
        const int64_t batch = index / tasks_per_image, y = first_row(index);
        const Window<T> window{params.x.row<const T>(batch, 0),
                               params.x.row_stride,
                               params.x.column_stride,
                               shape.height,
                               shape.width,
                               shape.channels,
                               shape.kernel_height,
                               shape.kernel_width,
                               weight,
                               padded,
                               static_cast<const A*>(params.bias)};
        T* out = params.out.row<T>(batch, y);
        const int64_t begin = y * shape.width, end = begin + rows(index) * shape.width;
        if (statistics.sum) {
            window_pixels_and_sums(window, begin, end, out, params.out.column_stride,
                                   sums + index * sums_count);
        } else {
            window_pixels(window, begin, end, nullptr, 0, out, params.out.column_stride);
        }
    });
    if (statistics.sum) {
        reduce_statistics(
            sums, tasks, shape.channels, [&](int64_t task) { return rows(task) * shape.width; },
            static_cast<A*>(statistics.sum), static_cast<A*>(statistics.m2), threads);
    }
}

}  // namespace

void local_aggregation_forward(const LocalAggregationForward& params, const ChannelStatistics& statistics,
                               DType dtype, int threads) {
    switch (dtype) {
        case DType::float32:
            return forward<float>(params, statistics, threads);
        case DType::float64:
            return forward<double>(params, statistics, threads);
        case DType::bfloat16:
            return forward<BFloat16>(params, statistics, threads);
        case DType::float16:
            return forward<Half>(params, statistics, threads);
    }
}

}  // namespace ck::CK_ISA
