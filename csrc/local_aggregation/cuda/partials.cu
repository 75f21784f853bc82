// SPDX-License-Identifier: MIT
#include "common/device.h"
#include "local_aggregation/cuda/partials.h"

namespace ck::cuda {
namespace {

// A block adds one row for 32 channels; its warps share the summands.
constexpr int kWarps = 8;

CK_KERNEL(kWarps * 32)
sum_partials_kernel(const float* partials, int64_t count, int rows, int padded_channels, int channels,
                    float* first, float* second) {
    CK_SHARED(double, sums, kWarps * 32);
    const int row = static_cast<int>(block_index().x % rows);
    const int channel = static_cast<int>(block_index().x / rows) * kWarpSize + lane();
    double sum = 0;
    for (int64_t i = warp(); i < count; i += kWarps)
        sum += partials[(i * rows + row) * padded_channels + channel];
    sums[thread_index()] = sum;
    sync_threads();
    if (warp() > 0 || channel >= channels) return;
    for (int other = 1; other < kWarps; ++other) sum += sums[other * kWarpSize + lane()];
    if (row < rows - 1) {
        first[static_cast<int64_t>(channel) * (rows - 1) + row] = static_cast<float>(sum);
    } else {
        second[channel] = static_cast<float>(sum);
    }
}

}  // namespace

void sum_partials(const float* partials, int64_t parts, int padded_channels, int rows, int channels, float* first,
                  float* second, Stream stream) {
    const Dim3 grid{static_cast<unsigned>(ceil_div(channels, kWarpSize) * rows)};
    launch<sum_partials_kernel>(grid, kWarps * kWarpSize, 0, stream, partials, parts, rows, padded_channels,
                                channels, first, second);
}

}  // namespace ck::cuda
