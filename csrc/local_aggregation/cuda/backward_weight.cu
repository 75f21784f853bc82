// SPDX-License-Identifier: MIT
// Gradient of weight and bias. A warp reads every row of x and of grad_out once, from shared memory: a lane
// keeps the K rows of grad_out that meet a row of x, and the sums of all taps of its two channels, in
// registers. Sums of blocks are added by a second kernel in fixed order.
#include "local_aggregation/cuda/dispatch.h"
#include "local_aggregation/cuda/launch.h"
#include "local_aggregation/cuda/partials.h"
#include "local_aggregation/cuda/rows.h"
#include "local_aggregation/cuda/wide.h"

namespace ck::cuda {
namespace {

// Filling the pipeline, adding the sums of the warps.
constexpr int kFixedRows = 6;

// Blocks that the registers of a processor are to be enough for.
template <int K>
constexpr int kBackwardBlocks = K == 3   ? 4
                                : K == 5 ? 3
                                         : 2;

// Rows of the sums of a block: every tap, and the bias.
template <int K>
constexpr int kSums = K * K + 1;

// Pixels of a warp group in one stage: a row of x with its halo, a row of grad_out.
template <int K>
constexpr int stage_columns(const Tiling& tiling) {
    return 2 * tiling.columns() + K - 1;
}

// Bytes of the ring of all warp groups or, later, of the sums of the block.
template <class T, int K>
constexpr size_t ring_bytes(const Tiling& tiling) {
    const size_t rows = sizeof(T) * tiling.warp_groups * kStages * stage_columns<K>(tiling) * kGroupChannels;
    const size_t sums = sizeof(float) * kSums<K> * kGroupChannels;
    return rows > sums ? rows : sums;
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

// `access`: bytes that move at once, when not Aligned.
template <class T, int K, bool Aligned>
CK_KERNEL(kMaxThreads, Aligned ? kBackwardBlocks<K> : 2)
backward_weight_kernel(LocalAggregationBackwardWeight params, Tiling tiling, int access, float* partials) {
    const LocalAggregationShape& shape = params.shape;
    const Place place(tiling);
    const int channels = shape.channels - place.first_channel;
    const int x_columns = tiling.columns() + K - 1;
    const int stage_elements = stage_columns<K>(tiling) * kGroupChannels;
    // Step by step a row of grad_out, and the row of x that is K/2 above, which it is the last one to meet:
    // the rows of x are those of the row tile, the rows of grad_out K/2 more on both sides. Outside of the
    // image they are zero, and so many follow a whole image that none of its grad_out is left for the next
    // one.
    const int lead = tiling.whole_images() ? 0 : K / 2;
    const int steps = lead + tiling.rows_per_tile + K / 2;

    CK_DYNAMIC_SHARED(memory);
    T* const ring = reinterpret_cast<T*>(memory) + place.warp_group * kStages * stage_elements;

    const int channel = 2 * lane();
    const int offset = place.column_warp * kColumns * kGroupChannels + channel;
    float* const bias =
        reinterpret_cast<float*>(memory + ring_bytes<T, K>(tiling)) + place.index * kGroupChannels + channel;
    store(bias, Vec<float, 2>{0, 0});  // a lane's own place: registers are short

    // The rows on their way: where the next ones are, when the row tile is over, and what the stages hold,
    // the latest one in bits 0 (grad_out) and 1 (x).
    const int thread = place.column_warp * kWarpSize + lane(), threads = tiling.column_warps * kWarpSize;
    const CopySlice<T, Aligned> x_slice(thread, threads, channels, params.x);
    const CopySlice<T, Aligned> grad_slice(thread, threads, channels, params.grad_out);
    int image = 0, grad_row = 0, rows = 0, next_step = steps, index = 0;
    const T* next_grad =
        grad_slice.template address<const T>(params.grad_out, place, image, grad_row, place.first_column);
    const T* next_x = x_slice.template address<const T>(params.x, place, image, grad_row - K / 2,
                                                        place.first_column - K / 2);
    unsigned held = 0;
    const auto fetch = [&](unsigned stage) {
        if (next_step == steps) {
            const RowTile row_tile(tiling, place, shape.height, index++);
            const int64_t images = row_tile.image - image, down = row_tile.begin - lead - grad_row;
            next_grad += images * params.grad_out.batch_stride + down * params.grad_out.row_stride;
            next_x += images * params.x.batch_stride + down * params.x.row_stride;
            image = row_tile.image;
            grad_row = row_tile.begin - lead;
            rows = row_tile.rows;
            next_step = 0;
        }
        T* const to = ring + stage * stage_elements;
        const bool x_exists = is_inside(next_step - lead - K / 2, rows);
        const bool grad_exists = is_inside(grad_row, shape.height);
        if (x_exists) x_slice.copy(next_x, to, place.first_column - K / 2, x_columns, shape.width, access);
        if (grad_exists) {
            grad_slice.copy(next_grad, to + x_columns * kGroupChannels, place.first_column, tiling.columns(),
                            shape.width, access);
        }
        copy_async_commit();
        held = held << 2 | x_exists << 1 | grad_exists;
        ++next_step;
        ++grad_row;
        next_x += params.x.row_stride;
        next_grad += params.grad_out.row_stride;
    };
    CK_NO_UNROLL
    for (int stage = 0; stage < kAhead; ++stage) fetch(stage);

    Float2 taps[K][K], grad_out[K][kColumns];
    CK_UNROLL
    for (int i = 0; i < K * K; ++i) taps[i / K][i % K] = {0, 0};
    CK_UNROLL
    for (int i = 0; i < K * kColumns; ++i) grad_out[i / kColumns][i % kColumns] = {0, 0};
    unsigned stage = 0;
    for (int left = tiling.row_tiles_per_warp_group * steps; left > 0; --left) {
        copy_async_wait<kAhead - 1>();
        sync_threads();
        fetch((stage + kAhead) % kStages);
        constexpr unsigned kHasGrad = 1u << 2 * kAhead, kHasX = 2 * kHasGrad;
        const T* const x = ring + stage * stage_elements + offset;
        CK_UNROLL
        for (int column = 0; column < kColumns; ++column) {
            CK_UNROLL
            for (int r = 0; r + 1 < K; ++r) grad_out[r][column] = grad_out[r + 1][column];
            grad_out[K - 1][column] = {0, 0};
            if (held & kHasGrad) {
                grad_out[K - 1][column] = to_float(load<2>(x + (x_columns + column) * kGroupChannels));
            }
        }
        if (held & kHasX) {
            Float2 sum{0, 0};  // of the row of grad_out at the place of x
            CK_UNROLL
            for (int column = 0; column < kColumns; ++column) sum = add(sum, grad_out[K / 2][column]);
            accumulate(bias, sum);
            add_row<T, K>(x, grad_out, taps);
        }
        stage = (stage + 1) % kStages;
    }

    // The warps add their sums one after the other.
    float* const sums = reinterpret_cast<float*>(memory);  // (kSums, 64)
    const auto add_to_sums = [&](int row, Float2 value, bool first) {
        float* const sum = sums + row * kGroupChannels + channel;
        if (first)
            store(sum, Vec<float, 2>{value.x, value.y});
        else
            accumulate(sum, value);
    };
    for (int turn = 0; turn < block_size() / kWarpSize; ++turn) {
        sync_threads();
        if (place.index != turn) continue;
        CK_UNROLL
        for (int i = 0; i < K * K; ++i) add_to_sums(i, taps[i / K][i % K], turn == 0);
        add_to_sums(K * K, to_float(load<2>(bias)), turn == 0);
    }
    sync_threads();
    for (int i = thread_index(); i < kSums<K> * kGroupChannels; i += block_size()) {
        const int64_t row = int64_t{place.part} * kSums<K> + i / kGroupChannels;
        partials[row * tiling.padded_channels() + place.first_channel + i % kGroupChannels] = sums[i];
    }
}

template <class T, int K>
void backward_weight(const LocalAggregationBackwardWeight& params, void* workspace, Stream stream) {
    const LocalAggregationShape& shape = params.shape;
    const Tiling tiling = choose_tiling(shape, K, kFixedRows, kMaxRows);
    const size_t biases = sizeof(float) * tiling.column_warps * tiling.warp_groups * kGroupChannels;
    const size_t shared = ring_bytes<T, K>(tiling) + biases;
    float* const partials = static_cast<float*>(workspace);
    const int access = std::min(access_bytes<T>(params.grad_out, shape), access_bytes<T>(params.x, shape));
    const auto start = [&]<bool Aligned>() {
        launch<backward_weight_kernel<T, K, Aligned>>({static_cast<unsigned>(tiling.blocks())},
                                                      tiling.threads(), shared, stream, params, tiling,
                                                      access, partials);
    };
    access == 16 ? start.template operator()<true>() : start.template operator()<false>();
    sum_partials(partials, tiling.parts(), tiling.padded_channels(), kSums<K>, shape.channels,
                 static_cast<float*>(params.grad_weight), static_cast<float*>(params.grad_bias), stream);
}

}  // namespace

size_t local_aggregation_backward_weight_workspace(const LocalAggregationShape& shape, DType) {
    check_square_window(shape.kernel_height, shape.kernel_width);
    const int kernel = shape.kernel_height;
    if (kernel == kWideWindow) return wide_backward_weight_workspace(shape);
    return partials_bytes(choose_tiling(shape, kernel, kFixedRows, kMaxRows), kernel * kernel + 1);
}

void local_aggregation_backward_weight(const LocalAggregationBackwardWeight& params, void* workspace,
                                       DType dtype, Stream stream) {
    with_type_and_window(dtype, params.shape, [&]<class T, int K>() {
        if constexpr (K == kWideWindow) {
            wide_backward_weight<T>(params, workspace, stream);
        } else {
            backward_weight<T, K>(params, workspace, stream);
        }
    });
}

}  // namespace ck::cuda
