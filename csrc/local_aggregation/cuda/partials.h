// SPDX-License-Identifier: MIT
// Second stage of the sums over blocks.
#pragma once

#include "common/runtime.h"
#include "local_aggregation/cuda/tiling.h"

namespace ck::cuda {

// Every block leaves `rows` sums of its 64 channels: (parts, rows, padded channels) floats. These are the bytes for the
// blocks of a tiling.
inline size_t partials_bytes(const Tiling& tiling, int rows) {
    return sizeof(float) * tiling.blocks() * rows * kGroupChannels;
}

// Adds them over the parts, in order and in double. Rows 0 … rows - 2 become first (C, rows - 1), the last one
// second (C,).
void sum_partials(const float* partials, int64_t parts, int padded_channels, int rows, int channels, float* first,
                  float* second, Stream stream);

}  // namespace ck::cuda
