// SPDX-License-Identifier: MIT
// Gradient of weight and bias. A warp reads every row of x and of grad_out once, from shared memory: a lane
// keeps the K rows of grad_out that meet a row of x, and the sums of all taps of its two channels, in
// registers. Sums of blocks are added by a second kernel in fixed order.
#include "local_aggregation/cuda/dispatch.h"
#include "local_aggregation/cuda/kernels.h"
#include "local_aggregation/cuda/partials.h"
#include "local_aggregation/cuda/rows.h"

namespace ck::cuda {
namespace {

// Filling the pipeline, adding the sums of the warps.
constexpr int kFixedRows = 6;

// Rows of the sums of a block: every tap, and the bias.
template <int K>
constexpr int kSums = K * K + 1;

// Pixels of a walker in one stage: a row of x with its halo, a row of grad_out.
template <int K>
constexpr int stage_columns(const Tiling& tiling) {
    return 2 * tiling.columns() + K - 1;
}

// taps[dy][dx] += Σ x[column + dx] · grad_out[K - 1 - dy][column]: the tap dy of input row i belongs to
// output row i + K/2 - dy.
template <class T, int K>
CK_DEVICE void add_row(const T* x, const Float2 (&grad_out)[K][kColumns], Float2 (&taps)[K][K]) {
    CK_UNROLL
    for (int column = 0; column < kColumns + K - 1; ++column) {
        const Float2 value = to_float(load<2>(x + column * kGroupChannels));
        CK_UNROLL
        for (int dx = 0; dx < K; ++dx) {
            const int out = column - dx;
            if (out < 0 || out >= kColumns) continue;
            CK_UNROLL
            for (int dy = 0; dy < K; ++dy) {
                taps[dy][dx] = multiply_add(value, grad_out[K - 1 - dy][out], taps[dy][dx]);
            }
        }
    }
}

template <class T, int K>
CK_KERNEL(kMostThreads)
backward_weight_kernel(DepthwiseBackwardWeight params, Tiling tiling, int grad_access, int x_access,
                       float* partials) {
    constexpr int P = K / 2;
    const DepthwiseShape& shape = params.shape;
    const Place place(tiling);
    const int channels = shape.channels - place.first_channel;
    const int x_columns = tiling.columns() + K - 1;
    const int stage_elements = stage_columns<K>(tiling) * kGroupChannels;
    // Step by step one row of x, and the row of grad_out K/2 below it, which it is the first one to meet.
    // Behind the last row come rows of zeros, which leave no grad_out of this strip for the next one.
    const int steps = tiling.strip_rows + (tiling.whole_images() ? P : 2 * P);

    CK_DYNAMIC_SHARED(memory);
    T* const ring = reinterpret_cast<T*>(memory) + place.walker * kStages * stage_elements;

    Walk ahead(tiling, place, shape.height);
    const auto fetch = [&](int stage) {
        const int row = ahead.strip.begin - P + ahead.step, threads = tiling.column_warps * kWarpSize;
        T* const to = ring + stage * stage_elements;
        if (ahead.strip.has_input(row, shape.height)) {
            const Run<const T> run{params.x.row<const T>(ahead.strip.image, row) + place.first_channel,
                                   params.x.column_stride,
                                   place.first_column - P,
                                   x_columns,
                                   shape.width,
                                   channels};
            copy_run(x_access, to, run, place.thread, threads);
        }
        if (ahead.strip.contains(row + P)) {
            const Run<const T> run{
                params.grad_out.row<const T>(ahead.strip.image, row + P) + place.first_channel,
                params.grad_out.column_stride,
                place.first_column,
                tiling.columns(),
                shape.width,
                channels};
            copy_run(grad_access, to + x_columns * kGroupChannels, run, place.thread, threads);
        }
        copy_async_commit();
        ahead.advance(tiling, place, shape.height, steps);
    };
    for (int stage = 0; stage < kStages - 1; ++stage) fetch(stage);

    const int channel = 2 * lane();
    const int offset = place.column_warp * kColumns * kGroupChannels + channel;
    Float2 taps[K][K], bias{0, 0}, grad_out[K][kColumns];
    CK_UNROLL
    for (int i = 0; i < K * K; ++i) taps[i / K][i % K] = {0, 0};
    CK_UNROLL
    for (int i = 0; i < K * kColumns; ++i) grad_out[i / kColumns][i % kColumns] = {0, 0};
    int stage = 0;
    for (int index = 0; index < tiling.sequence; ++index) {
        const Strip strip(tiling, place, shape.height, index);
        for (int step = 0; step < steps; ++step) {
            copy_async_wait<kStages - 2>();
            sync_threads();
            fetch((stage + kStages - 1) % kStages);
            const int row = strip.begin - P + step;
            const T* const x = ring + stage * stage_elements + offset;
            const bool has_grad = strip.contains(row + P);
            Float2 row_sum{0, 0};
            CK_UNROLL
            for (int out = 0; out < kColumns; ++out) {
                CK_UNROLL
                for (int r = 0; r + 1 < K; ++r) grad_out[r][out] = grad_out[r + 1][out];
                Float2 value{0, 0};
                if (has_grad) value = to_float(load<2>(x + (x_columns + out) * kGroupChannels));
                grad_out[K - 1][out] = value;
                row_sum = {row_sum.x + value.x, row_sum.y + value.y};
            }
            bias = {bias.x + row_sum.x, bias.y + row_sum.y};
            if (strip.has_input(row, shape.height)) add_row<T, K>(x, grad_out, taps);
            stage = (stage + 1) % kStages;
        }
    }

    // The warps add their sums one after the other.
    float* const sums = reinterpret_cast<float*>(memory);  // (kSums, 64)
    const auto add = [&](int row, Float2 value, bool first) {
        float* const sum = sums + row * kGroupChannels + channel;
        if (!first) {
            const Float2 before = to_float(load<2>(sum));
            value = {before.x + value.x, before.y + value.y};
        }
        store(sum, Vec<float, 2>{value.x, value.y});
    };
    for (int turn = 0; turn < block_size() / kWarpSize; ++turn) {
        sync_threads();
        if (warp() != turn) continue;
        CK_UNROLL
        for (int i = 0; i < K * K; ++i) add(i, taps[i / K][i % K], turn == 0);
        add(K * K, bias, turn == 0);
    }
    sync_threads();
    for (int i = thread_index(); i < kSums<K> * kGroupChannels; i += block_size()) {
        const int64_t row = int64_t{place.part} * kSums<K> + i / kGroupChannels;
        partials[row * tiling.padded_channels() + place.first_channel + i % kGroupChannels] = sums[i];
    }
}

template <class T, int K>
void backward_weight(const DepthwiseBackwardWeight& params, void* workspace, Stream stream) {
    const DepthwiseShape& shape = params.shape;
    const Tiling tiling = choose_tiling(shape, K, kFixedRows);
    const size_t ring = sizeof(T) * tiling.walkers * kStages * stage_columns<K>(tiling) * kGroupChannels;
    const size_t sums = sizeof(float) * kSums<K> * kGroupChannels;
    float* const partials = static_cast<float*>(workspace);
    launch<backward_weight_kernel<T, K>>(
        {static_cast<unsigned>(tiling.blocks())}, tiling.threads(), std::max(ring, sums), stream, params,
        tiling, access_bytes<T>(params.grad_out, shape), access_bytes<T>(params.x, shape), partials);
    sum_partials(partials, tiling, kSums<K>, shape.channels, static_cast<float*>(params.grad_weight),
                 static_cast<float*>(params.grad_bias), stream);
}

}  // namespace

size_t depthwise_backward_weight_workspace(const DepthwiseShape& shape, DType) {
    const int kernel = shape.kernel_height;
    return partials_bytes(choose_tiling(shape, kernel, kFixedRows), kernel * kernel + 1);
}

void depthwise_backward_weight(const DepthwiseBackwardWeight& params, void* workspace, DType dtype,
                               Stream stream) {
    with_type_and_window(dtype, params.shape,
                         [&]<class T, int K>() { backward_weight<T, K>(params, workspace, stream); });
}

}  // namespace ck::cuda
