// SPDX-License-Identifier: MIT
// Weight and bias gradient of the depthwise operation. A task adds up a run of rows of the batch for all
// channels, one row of the kernel at a time in registers; the tasks' sums are then added in order. The runs
// depend on the shape alone, so the result does not depend on the threads.
#include "cpu/convert.h"
#include "cpu/parallel.h"
#include "cpu/workspace.h"
#include "local_aggregation/cpu/launch.h"
#include "local_aggregation/cpu/window.h"

namespace ck::CK_ISA {
namespace {

// Bytes of both inputs in a task, which its channels walk over one vector after the other: a part of the
// second-level cache. Not less than kMinPixels, which make the final sum of the tasks cheap.
constexpr int64_t kTaskBytes = 256 << 10;
constexpr int64_t kMinPixels = 64;

// Adds grad_out · x to sum[kx] for kColumns pixels of a row and the taps whose first is `before` columns to
// the left. Columns of grad_out from `width` on do not exist.
template <int Width, class V, int Vectors, class T>
CK_INLINE void add_columns(const T* grad_out, int64_t grad_stride, const T* x, int64_t x_stride, int first,
                           int before, int width, V (&sum)[Width][Vectors]) {
    constexpr int L = kLanesOf<V>;
    V grad[kColumns][Vectors];
#pragma GCC unroll 8
    for (int i = 0; i < kColumns; ++i) {
#pragma GCC unroll 8
        for (int v = 0; v < Vectors; ++v) {
            grad[i][v] = first + i < width ? load<V>(grad_out + (first + i) * grad_stride + v * L) : V{};
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < kColumns + Width - 1; ++i) {
        const int column = first + i - before;
        if (column < 0 || column >= width) continue;
#pragma GCC unroll 8
        for (int v = 0; v < Vectors; ++v) {
            const V pixel = load<V>(x + column * x_stride + v * L);
#pragma GCC unroll 8
            for (int kx = 0; kx < Width; ++kx) {
                if (i - kx >= 0 && i - kx < kColumns) sum[kx][v] += pixel * grad[i - kx][v];
            }
        }
    }
}

// Adds what a row of grad_out and one of x give to Width taps of a row of the window, the first of them
// `before` columns left of its middle, to `sums`.
template <int Width, class V, int Vectors, class T>
CK_INLINE void add_taps(const LocalAggregationBackwardWeight& params, const T* grad_out, const T* x,
                        int before, Element<V>* sums, int64_t stride) {
    constexpr int L = kLanesOf<V>;
    const int width = params.shape.width;
    V sum[Width][Vectors] = {};
    for (int first = 0; first < width; first += kColumns) {
        add_columns<Width>(grad_out, params.grad_out.column_stride, x, params.x.column_stride, first, before,
                           width, sum);
    }
#pragma GCC unroll 8
    for (int kx = 0; kx < Width; ++kx) {
#pragma GCC unroll 8
        for (int v = 0; v < Vectors; ++v) {
            Element<V>* place = sums + kx * stride + v * L;
            store(place, load<V>(place) + sum[kx][v]);
        }
    }
}

// The rows begin … end - 1 of the batch, counted image by image, for one group of channels; adds to `sums`
// (taps + 1, stride), whose last row is the bias gradient. Width is the window's, or kAnyWidth.
template <int Width, class V, int Vectors, class T>
void add_rows(const LocalAggregationBackwardWeight& params, int64_t begin, int64_t end, int channel,
              Element<V>* sums, int64_t stride) {
    constexpr int L = kLanesOf<V>;
    const LocalAggregationShape& shape = params.shape;
    const int64_t grad_stride = params.grad_out.column_stride;
    V bias[Vectors] = {};
    for (int64_t row = begin; row < end; ++row) {
        const int64_t batch = row / shape.height;
        const int y = static_cast<int>(row % shape.height);
        const T* grad_out = params.grad_out.row<const T>(batch, y) + channel;
        for (int ky = 0; ky < shape.kernel_height; ++ky) {
            const int x_row = y + ky - shape.kernel_height / 2;
            if (x_row < 0 || x_row >= shape.height) continue;
            const T* x = params.x.row<const T>(batch, x_row) + channel;
            Element<V>* const target = sums + ky * shape.kernel_width * stride;
            for_each_piece<Width>(shape.kernel_width,
                                  [&](auto piece, int first, int before) __attribute__((always_inline)) {
                                      add_taps<decltype(piece)::value, V, Vectors>(
                                          params, grad_out, x, before, target + first * stride, stride);
                                  });
        }
        // A sum of sums of rows, as for the weight: it loses less than one long sum.
        V row_sum[Vectors] = {};
        for (int column = 0; column < shape.width; ++column) {
#pragma GCC unroll 8
            for (int v = 0; v < Vectors; ++v) row_sum[v] += load<V>(grad_out + column * grad_stride + v * L);
        }
#pragma GCC unroll 8
        for (int v = 0; v < Vectors; ++v) bias[v] += row_sum[v];
    }
    Element<V>* target = sums + shape.kernel_height * shape.kernel_width * stride;
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; ++v) store(target + v * L, bias[v]);
}

// All channels. A last vector that is not full is moved back to end with the channels: the sums it finds
// there are set to zero and computed again.
template <int Width, class T>
void add_channels(const LocalAggregationBackwardWeight& params, int64_t begin, int64_t end,
                  Accumulator<T>* sums, int64_t stride) {
    using A = Accumulator<T>;
    constexpr int L = kLanes<A>;
    constexpr int vectors = kVectorRegisters == 32 ? 2 : 1;
    const int channels = params.shape.channels;
    const int64_t taps = params.shape.kernel_height * params.shape.kernel_width;
    for (int64_t i = 0; i < (taps + 1) * stride; ++i) sums[i] = 0;
    int channel = 0;
    for (; channel + vectors * L <= channels; channel += vectors * L) {
        add_rows<Width, Vec<A>, vectors, T>(params, begin, end, channel, sums + channel, stride);
    }
    if constexpr (vectors > 1) {
        if (channel + L <= channels) {
            add_rows<Width, Vec<A>, 1, T>(params, begin, end, channel, sums + channel, stride);
            channel += L;
        }
    }
    if (channel == channels) return;
    if (channels >= L) {
        A* last = sums + channels - L;
        for (int64_t tap = 0; tap <= taps; ++tap) store(last + tap * stride, Vec<A>{});
        add_rows<Width, Vec<A>, 1, T>(params, begin, end, channels - L, last, stride);
    } else {
        for (; channel < channels; ++channel) {
            add_rows<Width, Vec<A, 1>, 1, T>(params, begin, end, channel, sums + channel, stride);
        }
    }
}

template <class T>
void backward_weight(const LocalAggregationBackwardWeight& params, int threads) {
    using A = Accumulator<T>;
    const LocalAggregationShape& shape = params.shape;
    const int taps = shape.kernel_height * shape.kernel_width;
    const int64_t stride = round_up(shape.channels, kLanes<A>), sums_count = (taps + 1) * stride;
    const int64_t rows = shape.batch * shape.height;
    const int64_t row_bytes = 2 * static_cast<int64_t>(sizeof(T)) * shape.width * shape.channels;
    const int64_t fitting = kTaskBytes / row_bytes, least = ceil_div(kMinPixels, shape.width);
    const int64_t task_rows = fitting > least ? fitting : least, tasks = ceil_div(rows, task_rows);
    A* sums = static_cast<A*>(workspace(tasks * sums_count * sizeof(A)));
    parallel_for(threads, tasks, [&](int64_t index, int) {
        const int64_t begin = index * task_rows, end = rows - begin < task_rows ? rows : begin + task_rows;
        A* target = sums + index * sums_count;
        switch (shape.kernel_width) {
            case 1:
                return add_channels<1, T>(params, begin, end, target, stride);
            case 3:
                return add_channels<3, T>(params, begin, end, target, stride);
            case 5:
                return add_channels<5, T>(params, begin, end, target, stride);
            case 7:
                return add_channels<7, T>(params, begin, end, target, stride);
            default:
                return add_channels<kAnyWidth, T>(params, begin, end, target, stride);
        }
    });
    A* grad_weight = static_cast<A*>(params.grad_weight);
    A* grad_bias = static_cast<A*>(params.grad_bias);
    parallel_for(threads, stride / kLanes<A>, [&](int64_t index, int) {
        const int64_t first = index * kLanes<A>;
        for (int tap = 0; tap <= taps; ++tap) {
            Vec<A> total = {};
            for (int64_t task = 0; task < tasks; ++task) {
                total += load<Vec<A>>(sums + task * sums_count + tap * stride + first);
            }
            for (int64_t channel = first; channel < first + kLanes<A> && channel < shape.channels;
                 ++channel) {
                (tap < taps ? grad_weight[channel * taps + tap] : grad_bias[channel]) =
                    total[channel - first];
            }
        }
    });
}

}  // namespace

void local_aggregation_backward_weight(const LocalAggregationBackwardWeight& params, DType dtype,
                                       int threads) {
    switch (dtype) {
        case DType::float32:
            return backward_weight<float>(params, threads);
        case DType::float64:
            return backward_weight<double>(params, threads);
        case DType::bfloat16:
            return backward_weight<BFloat16>(params, threads);
        case DType::float16:
            return backward_weight<Half>(params, threads);
    }
}

}  // namespace ck::CK_ISA
