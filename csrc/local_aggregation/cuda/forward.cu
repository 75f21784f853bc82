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

// Blocks that the registers of a processor are to be enough for.
template <int K>
constexpr int kForwardBlocks = K == 3   ? 4
                               : K == 5 ? 3
                                        : 2;

// Bytes of the ring of rows of all walkers.
template <class T, int K>
constexpr size_t ring_bytes(const Tiling& tiling) {
    return sizeof(T) * tiling.walkers * kStages * (tiling.columns() + K - 1) * kGroupChannels;
}

// Bytes of the filters of a group or, later, of the output rows of all warps.
template <class T, int K>
constexpr size_t staged_bytes(const Tiling& tiling) {
    const size_t filters = sizeof(float) * kGroupChannels * K * K;
    const size_t rows = sizeof(T) * tiling.column_warps * tiling.walkers * kColumns * kGroupChannels;
    return filters > rows ? filters : rows;
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

// `partials` null: no statistics. `access`: bytes of x that move at once, when not Aligned.
template <class T, int K, bool Aligned>
CK_KERNEL(kMostThreads, Aligned ? kForwardBlocks<K> : 2)
forward_kernel(DepthwiseForward params, Tiling tiling, int access, float* partials) {
    const DepthwiseShape& shape = params.shape;
    const Place place(tiling);
    const int channels = shape.channels - place.first_channel;
    const int row_columns = tiling.columns() + K - 1, row_elements = row_columns * kGroupChannels;
    // Input rows above a strip's first one, and below its last one.
    const int lead = tiling.whole_images() ? 0 : K / 2;
    const int steps = lead + tiling.strip_rows + lead;

    CK_DYNAMIC_SHARED(memory);
    T* const ring = reinterpret_cast<T*>(memory) + place.walker * kStages * row_elements;
    unsigned char* const scratch = memory + ring_bytes<T, K>(tiling);

    // The rows on their way: where the next one is, and when the strip is over.
    const int walker_threads = tiling.column_warps * kWarpSize;
    const Share<T, Aligned> share(thread_index() - place.walker * walker_threads, walker_threads, params.x);
    const T* next;
    int next_row, next_index = -1, rest = 0;
    const auto fetch = [&](unsigned stage) {
        if (rest-- == 0) {
            const Strip strip(tiling, place, shape.height, ++next_index);
            next_row = strip.begin - lead;
            next = share.template address<const T>(params.x, place, strip.image, next_row,
                                                   place.first_column - K / 2);
            rest = steps - 1;
        }
        if (is_inside(next_row, shape.height)) {
            share.copy(next, ring + stage * row_elements, place.first_column - K / 2, row_columns,
                       shape.width, channels, access);
        }
        copy_async_commit();
        ++next_row;
        next += params.x.row_stride;
    };

    // The filters of the group lie next to each other; through shared memory they are read front to back.
    float* const filters = reinterpret_cast<float*>(scratch);
    const float* const weight =
        static_cast<const float*>(params.weight) + int64_t{place.first_channel} * K * K;
    for (int i = thread_index(); i < kGroupChannels * K * K; i += block_size()) {
        copy_async<4>(filters + i, weight + i, i < channels * K * K);
    }
    CK_NO_UNROLL
    for (unsigned stage = 0; stage < kStages - 1; ++stage) fetch(stage);
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

    const int column_in_row = place.column_warp * kColumns;
    const int first_column = place.first_column + column_in_row;
    T* const staged = reinterpret_cast<T*>(scratch) + warp() * kColumns * kGroupChannels;
    const Share<T, Aligned> out_share(lane(), kWarpSize, params.out);
    // A lane's sums over its pixels are in shared memory, (warps, kStatistics, 64): registers are short.
    float* const totals = reinterpret_cast<float*>(scratch + staged_bytes<T, K>(tiling));
    float* const own_totals = totals + warp() * kStatistics * kGroupChannels + channel;
    if (partials) {
        store(own_totals, Vec<float, 2>{0, 0});
        store(own_totals + kGroupChannels, Vec<float, 2>{0, 0});
    }
    const auto write = [&](T* out, const Float2(&values)[kColumns]) {
        Vec<T, 2> rounded[kColumns];
        CK_UNROLL
        for (int column = 0; column < kColumns; ++column) {
            rounded[column] = from_floats<T>(values[column]);
            store(staged + column * kGroupChannels + channel, rounded[column]);
        }
        if (partials) {
            Float2 sum{0, 0}, square_sum{0, 0};  // of a row: short sums keep the rounding errors small
            CK_UNROLL
            for (int column = 0; column < kColumns; ++column) {
                if (first_column + column >= shape.width) continue;
                const Float2 value = to_float(rounded[column]);
                sum = add(sum, value);
                square_sum = multiply_add(value, value, square_sum);
            }
            accumulate(own_totals, sum);
            accumulate(own_totals + kGroupChannels, square_sum);
        }
        sync_warp();
        out_share.store_to(out, staged, first_column, shape.width, channels);
        sync_warp();
    };

    unsigned stage = 0;
    for (int index = 0; index < tiling.sequence; ++index) {
        const Strip strip(tiling, place, shape.height, index);
        T* out = out_share.template address<T>(params.out, place, strip.image, strip.begin, first_column);
        Float2 sums[K][kColumns];
        CK_UNROLL
        for (int i = 0; i < K * kColumns; ++i) sums[i / kColumns][i % kColumns] = bias;
        const int first_row = strip.begin - lead;
        for (int row = first_row; row < first_row + steps; ++row) {
            copy_async_wait<kStages - 2>();
            sync_threads();
            fetch((stage + kStages - 1) % kStages);
            if (is_inside(row, shape.height)) {
                const T* const x = ring + stage * row_elements + column_in_row * kGroupChannels + channel;
                add_row<T, K>(x, taps, bias, sums);
                if (is_inside(row - K / 2 - strip.begin, strip.rows)) {
                    write(out, sums[0]);
                    out += params.out.row_stride;
                }
            }
            stage = (stage + 1) % kStages;
        }
        // The rows that only wait for input rows below the image.
        CK_NO_UNROLL
        for (int row = shape.height - K / 2; row < shape.height; ++row) {
            CK_UNROLL
            for (int i = 0; i < (K - 1) * kColumns; ++i) {
                sums[i / kColumns][i % kColumns] = sums[i / kColumns + 1][i % kColumns];
            }
            if (!is_inside(row - strip.begin, strip.rows)) continue;
            write(out, sums[0]);
            out += params.out.row_stride;
        }
    }

    if (!partials) return;
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
    const size_t totals = sizeof(float) * tiling.column_warps * tiling.walkers * kStatistics * kGroupChannels;
    const size_t shared =
        ring_bytes<T, K>(tiling) + staged_bytes<T, K>(tiling) + (statistics.sum ? totals : 0);
    float* const partials = statistics.sum ? static_cast<float*>(workspace) : nullptr;
    const int access =
        std::min(access_bytes<T>(params.x, params.shape), access_bytes<T>(params.out, params.shape));
    const auto start = [&]<bool Aligned>() {
        launch<forward_kernel<T, K, Aligned>>({static_cast<unsigned>(tiling.blocks())}, tiling.threads(),
                                              shared, stream, params, tiling, access, partials);
    };
    access == 16 ? start.template operator()<true>() : start.template operator()<false>();
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
