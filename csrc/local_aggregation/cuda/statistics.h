// SPDX-License-Identifier: MIT
// Statistics of the output by channel, first of a warp, then of a block; partials.h has the last stage.
#pragma once

#include "cuda/device.h"
#include "local_aggregation/cuda/partials.h"
#include "local_aggregation/cuda/rows.h"

namespace ck::cuda {

// Of a warp, in shared memory, but for the pixels; a lane has two channels.
struct WarpStatistics {
    float rows[kPixels][kGroupChannels];

    CK_DEVICE void set(StatisticsRow row, int channel, Float2 value) {
        store(rows[row] + channel, Vec<float, 2>{value.x, value.y});
    }
};

// The mean of `columns` pixels with this sum, rounded as they are, so that differences from it are exact: one
// pixel alone could be far from the others. One that is not finite would make NaN of sums that are infinite.
template <class T>
CK_DEVICE Float2 pivot_of(Float2 sum, int columns) {
    const float part = 1 / static_cast<float>(columns);
    const Float2 mean = to_float(from_floats<T>({sum.x * part, sum.y * part}));
    return {mean.x - mean.x == 0 ? mean.x : 0, mean.y - mean.y == 0 ? mean.y : 0};
}

// Merges what the warps of a block have, statistics(warp) of pixels(warp), in their order about the pivot of
// the first one, which has pixels; leaves it as a part in `partials` (parts, kStatisticsRows,
// padded_channels). All threads take part.
template <class Statistics, class Pixels>
CK_DEVICE void leave_statistics(const Statistics& statistics, const Pixels& pixels, int part,
                                int first_channel, int padded_channels, float* partials) {
    sync_threads();
    for (int channel = thread_index(); channel < kGroupChannels; channel += block_size()) {
        const auto of = [&](int warp, StatisticsRow row) { return statistics(warp).rows[row][channel]; };
        const float pivot = of(0, kPivot);
        float count = static_cast<float>(pixels(0)), sum = of(0, kSum), square_sum = of(0, kSquareSum);
        for (int warp = 1; warp < block_size() / kWarpSize; ++warp) {
            const float warp_count = static_cast<float>(pixels(warp));
            const float shift = of(warp, kPivot) - pivot, shifted = warp_count * shift;
            count += warp_count;
            sum += of(warp, kSum) + shifted;
            square_sum += of(warp, kSquareSum) + shift * (2 * of(warp, kSum) + shifted);
        }
        float* const row =
            partials + int64_t{part} * kStatisticsRows * padded_channels + first_channel + channel;
        row[kPivot * padded_channels] = pivot;
        row[kSum * padded_channels] = sum;
        row[kSquareSum * padded_channels] = square_sum;
        row[kPixels * padded_channels] = count;
    }
}

}  // namespace ck::cuda
