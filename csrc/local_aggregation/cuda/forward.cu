// SPDX-License-Identifier: MIT
// Forward. A warp reads every input row once, from shared memory, and adds its share to all the output rows
// it belongs to: a lane keeps K rows of sums and all filter taps of its two channels in registers. The sums
// move up by one row with the first tap of their column, which costs no instruction of its own.
#include "local_aggregation/cuda/dispatch.h"
#include "local_aggregation/cuda/kernels.h"
#include "local_aggregation/cuda/partials.h"
#include "local_aggregation/cuda/rows.h"

namespace ck::cuda {
namespace {

// Loading the filters, filling the pipeline, the last store.
constexpr int kFixedRows = 3;
// Sums of the output and of its squares.
constexpr int kStatistics = 2;

// Blocks that the registers of a processor are enough for.
template <int K>
constexpr int kForwardBlocks = K == 3   ? 5
                               : K == 5 ? 3
                                        : 2;

// Bytes of the ring of rows of all walkers.
template <class T, int K>
constexpr size_t ring_bytes(const Tiling& tiling) {
    return sizeof(T) * tiling.walkers * kStages * (tiling.columns() + K - 1) * kGroupChannels;
}

// sums[r] are those of output row i - K/2 + r after input row i; they come as those of the row before.
template <class T, int K>
CK_DEVICE void add_row(const T* row, const Float2 (&taps)[K][K], Float2 bias, Float2 (&sums)[K][kColumns]) {
    CK_UNROLL
    for (int column = 0; column < kColumns + K - 1; ++column) {
        const Float2 value = to_float(load<2>(row + column * kGroupChannels));
        CK_UNROLL
        for (int dx = 0; dx < K; ++dx) {
            const int out = column - dx;
            if (out < 0 || out >= kColumns) continue;
            CK_UNROLL
            for (int r = 0; r < K; ++r) {
                const Float2 before = dx > 0 ? sums[r][out] : r + 1 < K ? sums[r + 1][out] : bias;
                sums[r][out] = multiply_add(value, taps[K - 1 - r][dx], before);
            }
        }
    }
}

// The same for an input row outside of the image.
template <int K>
CK_DEVICE void add_no_row(Float2 bias, Float2 (&sums)[K][kColumns]) {
    CK_UNROLL
    for (int out = 0; out < kColumns; ++out) {
        CK_UNROLL
        for (int r = 0; r < K; ++r) sums[r][out] = r + 1 < K ? sums[r + 1][out] : bias;
    }
}

// `partials` null: no statistics.
template <class T, int K>
CK_KERNEL(kMostThreads)
forward_kernel(DepthwiseForward params, Tiling tiling, int x_access, int out_access, float* partials) {
    const DepthwiseShape& shape = params.shape;
    const Place place(tiling);
    const int channels = shape.channels - place.first_channel;
    const int run_columns = tiling.columns() + K - 1, run_elements = run_columns * kGroupChannels;
    const int lead = tiling.whole_images() ? 0 : -(K / 2);
    const int steps = tiling.strip_rows + K / 2 - lead;

    CK_DYNAMIC_SHARED(memory);
    T* const ring = reinterpret_cast<T*>(memory) + place.walker * kStages * run_elements;
    unsigned char* const scratch = memory + ring_bytes<T, K>(tiling);

    Walk ahead(tiling, place, shape.height);
    const auto fetch = [&](int stage) {
        const int row = ahead.strip.begin + lead + ahead.step;
        if (ahead.strip.has_input(row, shape.height)) {
            const Run<const T> run{params.x.row<const T>(ahead.strip.image, row) + place.first_channel,
                                   params.x.column_stride,
                                   place.first_column - K / 2,
                                   run_columns,
                                   shape.width,
                                   channels};
            copy_run(x_access, ring + stage * run_elements, run, place.thread,
                     tiling.column_warps * kWarpSize);
        }
        copy_async_commit();
        ahead.advance(tiling, place, shape.height, steps);
    };

    // The filters of the group lie next to each other; through shared memory they are read front to back.
    float* const filters = reinterpret_cast<float*>(scratch);
    const float* const weight =
        static_cast<const float*>(params.weight) + int64_t{place.first_channel} * K * K;
    for (int i = thread_index(); i < kGroupChannels * K * K; i += block_size()) {
        copy_async<4>(filters + i, weight + i, i < channels * K * K);
    }
    for (int stage = 0; stage < kStages - 1; ++stage) fetch(stage);
    copy_async_wait<kStages - 2>();
    sync_threads();
    Float2 taps[K][K];
    const int channel = 2 * lane();
    CK_UNROLL
    for (int dy = 0; dy < K; ++dy) {
        CK_UNROLL
        for (int dx = 0; dx < K; ++dx) {
            const float* const tap = filters + channel * K * K + dy * K + dx;
            taps[dy][dx] = {tap[0], tap[K * K]};
        }
    }
    Float2 bias{0, 0};
    if (params.bias) {
        const float* const values = static_cast<const float*>(params.bias) + place.first_channel;
        if (channel < channels) bias.x = values[channel];
        if (channel + 1 < channels) bias.y = values[channel + 1];
    }

    const int column_in_run = place.column_warp * kColumns;
    const int first_column = place.first_column + column_in_run;
    T* const staged = reinterpret_cast<T*>(scratch) + warp() * kColumns * kGroupChannels;
    Float2 total{0, 0}, square_total{0, 0};
    int stage = 0;
    for (int index = 0; index < tiling.sequence; ++index) {
        const Strip strip(tiling, place, shape.height, index);
        Float2 sums[K][kColumns];
        CK_UNROLL
        for (int i = 0; i < K * kColumns; ++i) sums[i / kColumns][i % kColumns] = bias;
        for (int step = 0; step < steps; ++step) {
            copy_async_wait<kStages - 2>();
            sync_threads();
            fetch((stage + kStages - 1) % kStages);
            const int row = strip.begin + lead + step;
            if (strip.has_input(row, shape.height)) {
                add_row<T, K>(ring + stage * run_elements + column_in_run * kGroupChannels + channel, taps,
                              bias, sums);
            } else {
                add_no_row<K>(bias, sums);
            }
            stage = (stage + 1) % kStages;
            if (!strip.contains(row - K / 2)) continue;

            Float2 row_total{0, 0}, row_square_total{0, 0};  // short sums keep the rounding errors small
            CK_UNROLL
            for (int out = 0; out < kColumns; ++out) {
                const Vec<T, 2> rounded = from_floats<T>(sums[0][out]);
                store(staged + out * kGroupChannels + channel, rounded);
                if (partials && first_column + out < shape.width) {
                    const Float2 value = to_float(rounded);
                    row_total = {row_total.x + value.x, row_total.y + value.y};
                    row_square_total = multiply_add(value, value, row_square_total);
                }
            }
            total = {total.x + row_total.x, total.y + row_total.y};
            square_total = {square_total.x + row_square_total.x, square_total.y + row_square_total.y};
            sync_warp();
            store_run(out_access, staged,
                      Run<T>{params.out.row<T>(strip.image, row - K / 2) + place.first_channel,
                             params.out.column_stride, first_column, kColumns, shape.width, channels});
            sync_warp();
        }
    }

    if (!partials) return;
    sync_threads();
    float* const totals = reinterpret_cast<float*>(scratch);  // (warps, kStatistics, 64)
    float* const own = totals + warp() * kStatistics * kGroupChannels + channel;
    store(own, Vec<float, 2>{total.x, total.y});
    store(own + kGroupChannels, Vec<float, 2>{square_total.x, square_total.y});
    sync_threads();
    for (int i = thread_index(); i < kStatistics * kGroupChannels; i += block_size()) {
        float sum = totals[i];
        for (int other = 1; other < block_size() / kWarpSize; ++other) {
            sum += totals[other * kStatistics * kGroupChannels + i];
        }
        const int64_t row = int64_t{place.part} * kStatistics + i / kGroupChannels;
        partials[row * tiling.padded_channels() + place.first_channel + i % kGroupChannels] = sum;
    }
}

template <class T, int K>
void forward(const DepthwiseForward& params, const ChannelStatistics& statistics, void* workspace,
             Stream stream) {
    const Tiling tiling = choose_tiling(params.shape, K, kFixedRows);
    const size_t warps = tiling.threads() / kWarpSize;
    const size_t scratch =
        std::max({sizeof(float) * kGroupChannels * K * K, sizeof(T) * warps * kColumns * kGroupChannels,
                  sizeof(float) * warps * kStatistics * kGroupChannels});
    float* const partials = statistics.sum ? static_cast<float*>(workspace) : nullptr;
    launch<forward_kernel<T, K>>({static_cast<unsigned>(tiling.blocks())}, tiling.threads(),
                                 ring_bytes<T, K>(tiling) + scratch, stream, params, tiling,
                                 access_bytes<T>(params.x, params.shape),
                                 access_bytes<T>(params.out, params.shape), partials);
    if (!partials) return;
    sum_partials(partials, tiling, kStatistics, params.shape.channels, static_cast<float*>(statistics.sum),
                 static_cast<float*>(statistics.square_sum), stream);
}

}  // namespace

size_t depthwise_forward_workspace(const DepthwiseShape& shape, DType, bool statistics) {
    if (!statistics) return 0;
    return partials_bytes(choose_tiling(shape, shape.kernel_height, kFixedRows), kStatistics);
}

void depthwise_forward(const DepthwiseForward& params, const ChannelStatistics& statistics, void* workspace,
                       DType dtype, Stream stream) {
    with_type_and_window(dtype, params.shape,
                         [&]<class T, int K>() { forward<T, K>(params, statistics, workspace, stream); });
}

}  // namespace ck::cuda
