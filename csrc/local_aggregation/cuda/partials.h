// SPDX-License-Identifier: MIT
// Second stage of the sums over blocks.
#pragma once

#include "cuda/runtime.h"
#include "local_aggregation/cuda/tiling.h"

namespace ck::cuda {

// Every block leaves `rows` sums of its 64 channels: (parts, rows, padded channels) floats. These are the
// bytes for the blocks of a tiling.
inline size_t partials_bytes(const Tiling& tiling, int rows) {
    return sizeof(float) * tiling.blocks() * rows * kGroupChannels;
}

// Adds sums over the parts, in order and in double. Rows 0 … rows - 2 become first (C, rows - 1), the last
// one second (C,).
void sum_partials(const float* partials, int64_t parts, int padded_channels, int rows, int channels,
                  float* first, float* second, Stream stream);

// What a block leaves of its outputs' statistics, in this order; the pivot is a mean of some, so that the
// sums are of numbers as small as the deviation: a sum of squares about 0 would lose the variance where the
// mean is large.
enum StatisticsRow { kPivot, kSum, kSquareSum, kPixels, kStatisticsRows };

// Merges them over the parts, in order and in double.
void merge_statistics(const float* partials, int64_t parts, int padded_channels, int channels,
                      const ChannelStatistics& statistics, Stream stream);

}  // namespace ck::cuda
