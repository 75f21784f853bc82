// SPDX-License-Identifier: MIT
// Windows too large for their taps to stay in registers: a warp has 64 channels, two a lane, and takes runs
// of kColumns pixels of a row. It goes through the window row by row, reading every value of a run once for
// each. Right for any width; the kernels of forward.cu and backward_weight.cu are those to be fast with.
#include <algorithm>

#include "local_aggregation/cuda/launch.h"
#include "local_aggregation/cuda/partials.h"
#include "local_aggregation/cuda/rows.h"
#include "local_aggregation/cuda/statistics.h"
#include "local_aggregation/cuda/wide.h"

namespace ck::cuda {
namespace {

constexpr int K = kWideWindow;
constexpr int kWarps = 4;
constexpr int kWideBlocks = 5;    // that the registers of a processor are to be enough for
constexpr int kSums = K * K + 1;  // of the weight gradient: every tap, and the bias
// Runs of a warp that make the filters it loads, or the sums it leaves, a small part of its work.
constexpr int kMinRuns = 16;

// How the runs of a batch are divided: block (part, group) has every parts-th run of kWarps.
struct WideTiling {
    int groups;  // of 64 channels
    int parts;
    int row_runs;  // of a row
    int64_t runs;  // of all images

    WideTiling(const LocalAggregationShape& shape, int blocks_per_group)
        : groups(static_cast<int>(ceil_div(shape.channels, kGroupChannels))),
          row_runs(static_cast<int>(ceil_div(shape.width, kColumns))),
          runs(shape.batch * shape.height * row_runs) {
        const int64_t most = std::max<int64_t>(1, blocks_per_group / groups);
        parts = static_cast<int>(std::min(most, ceil_div(runs, kWarps * kMinRuns)));
    }

    constexpr int padded_channels() const { return groups * kGroupChannels; }
};

// Enough to fill every multiprocessor, whatever the registers of a kernel are.
WideTiling wide_tiling(const LocalAggregationShape& shape) { return {shape, 8 * multiprocessor_count()}; }

// Where the runs of a warp are and what of their two channels exists.
struct WideWarp {
    int part, group, first_channel, channel;  // of the block, of the lane in its group
    bool first, second;                       // whether the lane's channels exist

    CK_DEVICE WideWarp(const WideTiling& tiling, const LocalAggregationShape& shape, int block)
        : part(block / tiling.groups),
          group(block % tiling.groups),
          first_channel(group * kGroupChannels),
          channel(2 * lane()),
          first(first_channel + channel < shape.channels),
          second(first_channel + channel + 1 < shape.channels) {}

    // Two channels of a pixel, zeros where they do not exist.
    template <class T>
    CK_DEVICE Float2 read(const T* pixel) const {
        return to_float(Vec<T, 2>{first ? pixel[0] : T{}, second ? pixel[1] : T{}});
    }
    template <class T>
    CK_DEVICE void write(T* pixel, Float2 value) const {
        const Vec<T, 2> pair = from_floats<T>(value);
        if (first) pixel[0] = pair.data[0];
        if (second) pixel[1] = pair.data[1];
    }

    // Calls add(dx, i, value) for every value of an image row and every pixel i of the run from x on that
    // sees it by the column dx of the window.
    template <class T, class Add>
    CK_DEVICE void for_each_value(const T* pixels, int64_t stride, int x, int width, Add add) const {
        CK_UNROLL
        for (int i = 0; i < kColumns + K - 1; ++i) {
            const int column = x + i - K / 2;
            if (!is_inside(column, width)) continue;
            const Float2 value = read(pixels + column * stride);
            CK_UNROLL
            for (int dx = 0; dx < K; ++dx) {
                if (i - dx >= 0 && i - dx < kColumns) add(dx, i - dx, value);
            }
        }
    }

    // Calls visit(image, row, first column, columns) for every run.
    template <class Visit>
    CK_DEVICE void for_each_run(const WideTiling& tiling, const LocalAggregationShape& shape,
                                Visit visit) const {
        for (int64_t run = int64_t{part} * kWarps + warp(); run < tiling.runs;
             run += int64_t{tiling.parts} * kWarps) {
            const int64_t row = run / tiling.row_runs;
            const int column = static_cast<int>(run % tiling.row_runs) * kColumns;
            const int columns = shape.width - column < kColumns ? shape.width - column : kColumns;
            visit(row / shape.height, static_cast<int>(row % shape.height), column, columns);
        }
    }
};

// Adds the warps' `sums` in their order and leaves them as row `row` of the part's in `partials` (parts,
// rows, channels).
CK_DEVICE void leave_sums(float* smem_scratch, const WideWarp& place, const WideTiling& tiling, Float2 sums,
                          int row, int rows, float* partials) {
    store(smem_scratch + warp() * kGroupChannels + place.channel, Vec<float, 2>{sums.x, sums.y});
    sync_threads();
    if (warp() == 0) {
        Float2 total{0, 0};
        for (int other = 0; other < kWarps; ++other) {
            total = add(total, to_float(load<2>(smem_scratch + other * kGroupChannels + place.channel)));
        }
        float* const target = partials + (int64_t{place.part} * rows + row) * tiling.padded_channels() +
                              place.first_channel + place.channel;
        store(target, Vec<float, 2>{total.x, total.y});
    }
    sync_threads();
}

// `partials` null: no statistics.
template <class T>
CK_KERNEL(kWarps* kWarpSize, kWideBlocks)
wide_forward_kernel(LocalAggregationForward params, WideTiling tiling, float* partials) {
    const LocalAggregationShape& shape = params.shape;
    const WideWarp place(tiling, shape, static_cast<int>(block_index().x));
    const int rest = shape.channels - place.first_channel;
    const int channels = rest < kGroupChannels ? rest : kGroupChannels;
    CK_SHARED(float, filters, kGroupChannels * K * K);
    const float* const weight =
        static_cast<const float*>(params.weight) + int64_t{place.first_channel} * K * K;
    for (int i = thread_index(); i < kGroupChannels * K * K; i += block_size()) {
        filters[i] = i < channels * K * K ? weight[i] : 0.f;
    }
    sync_threads();
    Float2 bias{0, 0};
    if (params.bias)
        bias = place.read(static_cast<const float*>(params.bias) + place.first_channel + place.channel);
    Float2 pivot{0, 0}, sum{0, 0}, square_sum{0, 0};
    int pixels = 0;
    place.for_each_run(tiling, shape, [&](int64_t image, int y, int x, int columns) {
        Float2 sums[kColumns];
        CK_UNROLL
        for (int i = 0; i < kColumns; ++i) sums[i] = bias;
        CK_NO_UNROLL
        for (int dy = 0; dy < K; ++dy) {
            const int row = y + dy - K / 2;
            if (!is_inside(row, shape.height)) continue;
            const T* const pixels = params.x.row<const T>(image, row) + place.first_channel + place.channel;
            const float* const filter = filters + place.channel * K * K + dy * K;
            Float2 taps[K];
            CK_UNROLL
            for (int dx = 0; dx < K; ++dx) taps[dx] = {filter[dx], filter[K * K + dx]};
            place.for_each_value(
                pixels, params.x.column_stride, x, shape.width,
                [&](int dx, int i, Float2 value) { sums[i] = multiply_add(value, taps[dx], sums[i]); });
        }
        T* const out =
            params.out.row<T>(image, y) + x * params.out.column_stride + place.first_channel + place.channel;
        Float2 run_sum{0, 0}, run_square_sum{0, 0};  // short sums keep the rounding errors small
        Vec<T, 2> rounded[kColumns];
        CK_UNROLL
        for (int i = 0; i < kColumns; ++i) rounded[i] = from_floats<T>(sums[i]);
        if (pixels == 0) {
            Float2 first_sum{0, 0};
            CK_UNROLL
            for (int i = 0; i < kColumns; ++i) {
                if (i < columns) first_sum = add(first_sum, to_float(rounded[i]));
            }
            pivot = pivot_of<T>(first_sum, columns);
        }
        CK_UNROLL
        for (int i = 0; i < kColumns; ++i) {
            if (i >= columns) continue;
            const Float2 value = to_float(rounded[i]);
            place.write(out + i * params.out.column_stride, value);
            const Float2 deviation = subtract(value, pivot);
            run_sum = add(run_sum, deviation);
            run_square_sum = multiply_add(deviation, deviation, run_square_sum);
        }
        sum = add(sum, run_sum);
        square_sum = add(square_sum, run_square_sum);
        pixels += columns;
    });
    if (!partials) return;
    sync_threads();  // the filters are no longer needed
    WarpStatistics* const memories = reinterpret_cast<WarpStatistics*>(filters);
    static_assert(sizeof(WarpStatistics) * kWarps <= sizeof(float) * kGroupChannels * K * K);
    WarpStatistics& own = memories[warp()];
    own.set(kPivot, place.channel, pivot);
    own.set(kSum, place.channel, sum);
    own.set(kSquareSum, place.channel, square_sum);
    CK_SHARED(int, warp_pixels, kWarps);
    if (lane() == 0) warp_pixels[warp()] = pixels;
    leave_statistics([&](int warp) -> const WarpStatistics& { return memories[warp]; },
                     [&](int warp) { return warp_pixels[warp]; }, place.part, place.first_channel,
                     tiling.padded_channels(), partials);
}

// A block has one row of the window.
template <class T>
CK_KERNEL(kWarps* kWarpSize)
wide_backward_weight_kernel(LocalAggregationBackwardWeight params, WideTiling tiling, float* partials) {
    const LocalAggregationShape& shape = params.shape;
    const int dy = static_cast<int>(block_index().x % K);
    const WideWarp place(tiling, shape, static_cast<int>(block_index().x / K));
    CK_SHARED(float, smem_scratch, kWarps* kGroupChannels);
    const int channel = place.first_channel + place.channel;
    Float2 sums[K], bias{0, 0};
    CK_UNROLL
    for (int dx = 0; dx < K; ++dx) sums[dx] = {0, 0};
    place.for_each_run(tiling, shape, [&](int64_t image, int y, int x, int columns) {
        const T* const grads =
            params.grad_out.row<const T>(image, y) + x * params.grad_out.column_stride + channel;
        Float2 grad_out[kColumns], run_sum{0, 0};
        CK_UNROLL
        for (int i = 0; i < kColumns; ++i) {
            grad_out[i] = {0, 0};
            if (i < columns) grad_out[i] = place.read(grads + i * params.grad_out.column_stride);
            run_sum = add(run_sum, grad_out[i]);
        }
        bias = add(bias, run_sum);
        const int row = y + dy - K / 2;
        if (!is_inside(row, shape.height)) return;
        const T* const pixels = params.x.row<const T>(image, row) + channel;
        place.for_each_value(
            pixels, params.x.column_stride, x, shape.width,
            [&](int dx, int i, Float2 value) { sums[dx] = multiply_add(value, grad_out[i], sums[dx]); });
    });
    CK_UNROLL
    for (int dx = 0; dx < K; ++dx)
        leave_sums(smem_scratch, place, tiling, sums[dx], dy * K + dx, kSums, partials);
    if (dy == 0) leave_sums(smem_scratch, place, tiling, bias, K * K, kSums, partials);
}

}  // namespace

size_t wide_forward_workspace(const LocalAggregationShape& shape) {
    const WideTiling tiling = wide_tiling(shape);
    return sizeof(float) * tiling.parts * kStatisticsRows * tiling.padded_channels();
}

template <class T>
void wide_forward(const LocalAggregationForward& params, const ChannelStatistics& statistics, void* workspace,
                  Stream stream) {
    const WideTiling tiling = wide_tiling(params.shape);
    float* const partials = statistics.sum ? static_cast<float*>(workspace) : nullptr;
    const Dim3 grid{static_cast<unsigned>(tiling.parts) * tiling.groups};
    launch<wide_forward_kernel<T>>(grid, kWarps * kWarpSize, 0, stream, params, tiling, partials);
    if (!partials) return;
    merge_statistics(partials, tiling.parts, tiling.padded_channels(), params.shape.channels, statistics,
                     stream);
}

size_t wide_backward_weight_workspace(const LocalAggregationShape& shape) {
    const WideTiling tiling = wide_tiling(shape);
    return sizeof(float) * tiling.parts * kSums * tiling.padded_channels();
}

template <class T>
void wide_backward_weight(const LocalAggregationBackwardWeight& params, void* workspace, Stream stream) {
    const WideTiling tiling = wide_tiling(params.shape);
    float* const partials = static_cast<float*>(workspace);
    const Dim3 grid{static_cast<unsigned>(tiling.parts) * tiling.groups * K};
    launch<wide_backward_weight_kernel<T>>(grid, kWarps * kWarpSize, 0, stream, params, tiling, partials);
    sum_partials(partials, tiling.parts, tiling.padded_channels(), kSums, params.shape.channels,
                 static_cast<float*>(params.grad_weight), static_cast<float*>(params.grad_bias), stream);
}

template void wide_forward<float>(const LocalAggregationForward&, const ChannelStatistics&, void*, Stream);
template void wide_forward<BFloat16>(const LocalAggregationForward&, const ChannelStatistics&, void*, Stream);
template void wide_forward<Half>(const LocalAggregationForward&, const ChannelStatistics&, void*, Stream);
template void wide_backward_weight<float>(const LocalAggregationBackwardWeight&, void*, Stream);
template void wide_backward_weight<BFloat16>(const LocalAggregationBackwardWeight&, void*, Stream);
template void wide_backward_weight<Half>(const LocalAggregationBackwardWeight&, void*, Stream);

}  // namespace ck::cuda
