// SPDX-License-Identifier: MIT
// Forward. A warp reads every input row once, from shared memory, and adds its share to all the output rows
// it belongs to: a lane keeps K rows of sums and all filter taps of its two channels in registers. The sums
// move up by one row with the first tap of their column, which costs no instruction of its own.
#include "local_aggregation/cuda/dispatch.h"
#include "local_aggregation/cuda/launch.h"
#include "local_aggregation/cuda/partials.h"
#include "local_aggregation/cuda/rows.h"
#include "local_aggregation/cuda/statistics.h"
#include "local_aggregation/cuda/wide.h"

namespace ck::cuda {
namespace {

// Loading the filters, filling the pipeline, the last store.
constexpr int kFixedRows = 3;

// Blocks that the registers of a processor are to be enough for.
template <int K>
constexpr int kForwardBlocks = K == 3   ? 4
                               : K == 5 ? 3
                                        : 2;

// Bytes of the ring of rows of all warp groups.
template <class T, int K>
constexpr size_t ring_bytes(const Tiling& tiling) {
    return sizeof(T) * tiling.warp_groups * kStages * (tiling.columns() + K - 1) * kGroupChannels;
}

// A warp's own shared memory: a row of its output and, since registers are short, its lanes' statistics of
// their pixels.
template <class T>
struct WarpMemory {
    T row[kColumns * kGroupChannels];
    WarpStatistics statistics;
};

// Bytes of the filters of a group or, later, of the memories of all warps.
template <class T, int K>
constexpr size_t scratch_bytes(const Tiling& tiling) {
    const size_t filters = sizeof(float) * kGroupChannels * K * K;
    const size_t warps = sizeof(WarpMemory<T>) * tiling.column_warps * tiling.warp_groups;
    return filters > warps ? filters : warps;
}

// sums[r] are those of output row i - K/2 + r after input row i; they come as those of the row before. Only
// rows First ... End - 1 of them are wanted.
template <class T, int K, int First, int End>
CK_DEVICE void add_row(const T* row, const Float2 (&taps)[K][K], Float2 bias, Float2 (&sums)[K][kColumns]) {
    CK_UNROLL
    for (int column = 0; column < kColumns + K - 1; ++column) {
        const Float2 value = to_float(load<2>(row + column * kGroupChannels));
        CK_UNROLL
        for (int dx = 0; dx < K; ++dx) {
            const int out = column - dx;
            if (out < 0 || out >= kColumns) continue;
            CK_UNROLL
            for (int r = First; r < End; ++r) {
                const Float2 before = dx > 0 ? sums[r][out] : r + 1 < K ? sums[r + 1][out] : bias;
                sums[r][out] = multiply_add(value, taps[K - 1 - r][dx], before);
            }
        }
    }
}

// `partials` null: no statistics. `access`: bytes of x that move at once, when not Aligned.
template <class T, int K, bool Aligned>
CK_KERNEL(kMaxThreads, Aligned ? kForwardBlocks<K> : 2)
forward_kernel(LocalAggregationForward params, Tiling tiling, int access, float* partials) {
    const LocalAggregationShape& shape = params.shape;
    const Place place(tiling);
    const int channels = shape.channels - place.first_channel;
    const int row_columns = tiling.columns() + K - 1, row_elements = row_columns * kGroupChannels;
    const RowTile row_tile(tiling, place, shape.height, 0);
    // The input rows of the row tile; every warp group of the block takes as many steps.
    const int lead = tiling.whole_images() ? 0 : K / 2, first_row = row_tile.begin - lead;
    const int end_row = row_tile.end() + lead < shape.height ? row_tile.end() + lead : shape.height;
    const int steps = lead + tiling.rows_per_tile + lead;

    CK_DYNAMIC_SHARED(memory);
    T* const ring = reinterpret_cast<T*>(memory) + place.warp_group * kStages * row_elements;
    unsigned char* const scratch = memory + ring_bytes<T, K>(tiling);

    const CopySlice<T, Aligned> slice(place.column_warp * kWarpSize + lane(), tiling.column_warps * kWarpSize,
                                      channels, params.x);
    const T* next = slice.template address<const T>(params.x, place, row_tile.image, first_row,
                                                    place.first_column - K / 2);
    const auto fetch = [&](int row, unsigned stage) {
        if (0 <= row && row < end_row) {
            slice.copy(next, ring + stage * row_elements, place.first_column - K / 2, row_columns,
                       shape.width, access);
        }
        copy_async_commit();
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
    for (int stage = 0; stage < kAhead; ++stage) fetch(first_row + stage, stage);
    copy_async_wait<kAhead - 1>();
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
    const int columns = shape.width - first_column < kColumns ? shape.width - first_column : kColumns;
    const CopySlice<T, Aligned> out_slice(lane(), kWarpSize, channels, params.out);
    WarpMemory<T>* const memories = reinterpret_cast<WarpMemory<T>*>(scratch);
    WarpMemory<T>& own = memories[place.index];
    sync_threads();  // the filters are no longer needed
    own.statistics.set(kPivot, channel, {0, 0});
    own.statistics.set(kSum, channel, {0, 0});
    own.statistics.set(kSquareSum, channel, {0, 0});
    const auto write = [&](T* out, const Float2(&values)[kColumns], bool is_first) {
        // Of a row: short sums keep the rounding errors small.
        Float2 pivot{0, 0}, sum{0, 0}, square_sum{0, 0};
        if (partials) {
            if (is_first && columns > 0) {
                CK_UNROLL
                for (int column = 0; column < kColumns; ++column) {
                    if (column < columns) pivot = add(pivot, values[column]);
                }
                own.statistics.set(kPivot, channel, pivot_of<T>(pivot, columns));
            }
            pivot = to_float(load<2>(own.statistics.rows[kPivot] + channel));
        }
        CK_UNROLL
        for (int column = 0; column < kColumns; ++column) {
            const Vec<T, 2> rounded = from_floats<T>(values[column]);
            store(own.row + column * kGroupChannels + channel, rounded);
            if (!partials || column >= columns) continue;
            const Float2 deviation = subtract(to_float(rounded), pivot);
            sum = add(sum, deviation);
            square_sum = multiply_add(deviation, deviation, square_sum);
        }
        if (partials) {
            accumulate(own.statistics.rows[kSum] + channel, sum);
            accumulate(own.statistics.rows[kSquareSum] + channel, square_sum);
        }
        sync_warp();
        out_slice.store_to(out, own.row, columns);
    };

    T* out = out_slice.template address<T>(params.out, place, row_tile.image, row_tile.begin, first_column);
    Float2 sums[K][kColumns];
    CK_UNROLL
    for (int i = 0; i < K * kColumns; ++i) sums[i / kColumns][i % kColumns] = bias;
    unsigned stage = 0;
    for (int row = first_row; row < first_row + steps; ++row) {
        copy_async_wait<kAhead - 1>();
        sync_threads();
        fetch(row + kAhead, (stage + kAhead) % kStages);
        if (0 <= row && row < end_row) {
            const T* const x = ring + stage * row_elements + column_in_row * kGroupChannels + channel;
            if (row < row_tile.begin) {
                add_row<T, K, K / 2 + 1, K>(x, taps, bias, sums);
            } else if (row < row_tile.end()) {
                add_row<T, K, 0, K>(x, taps, bias, sums);
            } else {
                add_row<T, K, 0, K / 2>(x, taps, bias, sums);
            }
            if (row - K / 2 >= row_tile.begin) {
                write(out, sums[0], row - K / 2 == row_tile.begin);
                out += params.out.row_stride;
            }
        }
        stage = (stage + 1) % kStages;
    }
    // The rows that only wait for input rows below the image.
    CK_NO_UNROLL
    for (int row = shape.height - K / 2; row < row_tile.end(); ++row) {
        CK_UNROLL
        for (int i = 0; i < (K - 1) * kColumns; ++i) {
            sums[i / kColumns][i % kColumns] = sums[i / kColumns + 1][i % kColumns];
        }
        if (row < row_tile.begin) continue;
        sync_warp();  // the row before has left shared memory
        write(out, sums[0], row == row_tile.begin);
        out += params.out.row_stride;
    }

    if (!partials) return;
    // In place of its last row: memory of its own would leave A100 room for one block less.
    const auto pixels_of = [](WarpMemory<T>& memory) -> int& { return *reinterpret_cast<int*>(memory.row); };
    sync_warp();
    if (lane() == 0) pixels_of(own) = row_tile.rows * (columns > 0 ? columns : 0);
    leave_statistics([&](int warp) -> const WarpStatistics& { return memories[warp].statistics; },
                     [&](int warp) { return pixels_of(memories[warp]); }, place.part, place.first_channel,
                     tiling.padded_channels(), partials);
}

template <class T, int K>
void forward(const LocalAggregationForward& params, const ChannelStatistics& statistics, void* workspace,
             Stream stream) {
    const Tiling tiling = choose_tiling(params.shape, K, kFixedRows, 1);
    const size_t shared = ring_bytes<T, K>(tiling) + scratch_bytes<T, K>(tiling);
    float* const partials = statistics.sum ? static_cast<float*>(workspace) : nullptr;
    const int access =
        std::min(access_bytes<T>(params.x, params.shape), access_bytes<T>(params.out, params.shape));
    const auto start = [&]<bool Aligned>() {
        launch<forward_kernel<T, K, Aligned>>({static_cast<unsigned>(tiling.blocks())}, tiling.threads(),
                                              shared, stream, params, tiling, access, partials);
    };
    access == 16 ? start.template operator()<true>() : start.template operator()<false>();
    if (!partials) return;
    merge_statistics(partials, tiling.parts(), tiling.padded_channels(), params.shape.channels, statistics,
                     stream);
}

}  // namespace

size_t local_aggregation_forward_workspace(const LocalAggregationShape& shape, DType, bool statistics) {
    check_square_window(shape.kernel_height, shape.kernel_width);
    if (!statistics) return 0;
    if (shape.kernel_height == kWideWindow) return wide_forward_workspace(shape);
    return partials_bytes(choose_tiling(shape, shape.kernel_height, kFixedRows, 1), kStatisticsRows);
}

void local_aggregation_forward(const LocalAggregationForward& params, const ChannelStatistics& statistics,
                               void* workspace, DType dtype, Stream stream) {
    with_type_and_window(dtype, params.shape, [&]<class T, int K>() {
        if constexpr (K == kWideWindow) {
            wide_forward<T>(params, statistics, workspace, stream);
        } else {
            forward<T, K>(params, statistics, workspace, stream);
        }
    });
}

}  // namespace ck::cuda
