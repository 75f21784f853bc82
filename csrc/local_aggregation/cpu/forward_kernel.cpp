// SPDX-License-Identifier: MIT
// Forward of the depthwise operation; with the flipped weight, its input gradient. A task is a run of rows of
// one image, with all channels: memory is read front to back, and the rows of a window come from the cache.
#include "cpu/parallel.h"
#include "cpu/simd.h"
#include "cpu/workspace.h"
#include "local_aggregation/cpu/kernels.h"
#include "local_aggregation/cpu/window.h"

namespace ck::CK_ISA {
namespace {

// Rows of a task; more read fewer rows twice, fewer share the work better among threads.
constexpr int kTaskRows = 8;

template <class T>
void forward(const DepthwiseForward& params, int threads) {
    using A = Accumulator<T>;
    const DepthwiseShape& shape = params.shape;
    const int taps = shape.kernel_height * shape.kernel_width;
    const int64_t padded = round_up(shape.channels, kLanes<A>);
    A* weight = static_cast<A*>(workspace(taps * padded * sizeof(A)));
    constexpr int block = 4 * kLanes<A>;
    parallel_for(threads, ceil_div(shape.channels, block), [&](int64_t index, int) {
        const int first = static_cast<int>(index) * block;
        const int channels = shape.channels - first < block ? shape.channels - first : block;
        pack_window_weight(static_cast<const A*>(params.weight) + first * taps, channels, taps, false,
                           weight + first, padded);
    });
    const int64_t tasks_per_image = ceil_div(shape.height, kTaskRows);
    parallel_for(threads, shape.batch * tasks_per_image, [&](int64_t index, int) {
        const int64_t batch = index / tasks_per_image, y = index % tasks_per_image * kTaskRows;
        const int64_t y_end = shape.height - y < kTaskRows ? shape.height : y + kTaskRows;
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
        window_pixels(window, y * shape.width, y_end * shape.width, nullptr, 0, params.out.row<T>(batch, y),
                      params.out.column_stride);
    });
}

}  // namespace

void depthwise_forward(const DepthwiseForward& params, DType dtype, int threads) {
    switch (dtype) {
        case DType::float32:
            return forward<float>(params, threads);
        case DType::float64:
            return forward<double>(params, threads);
        case DType::bfloat16:
            return forward<BFloat16>(params, threads);
        case DType::float16:
            return forward<Half>(params, threads);
    }
}

}  // namespace ck::CK_ISA
