// SPDX-License-Identifier: MIT
#include "cuda/device.h"
#include "local_aggregation/cuda/partials.h"

namespace ck::cuda {
namespace {

// A block has 32 channels, of one row where it adds; its warps share the summands.
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

CK_KERNEL(kWarps * 32)
merge_statistics_kernel(const float* partials, int64_t parts, int padded_channels, int channels, float* sum,
                        float* m2) {
    CK_SHARED(double, sums, 3 * kWarps * 32);
    const int channel = static_cast<int>(block_index().x) * kWarpSize + lane();
    const double pivot = partials[int64_t{kPivot} * padded_channels + channel];
    double count = 0, total = 0, square_total = 0;  // about the first part's pivot
    for (int64_t part = warp(); part < parts; part += kWarps) {
        const float* const row = partials + part * kStatisticsRows * padded_channels + channel;
        const double part_count = row[kPixels * padded_channels], part_sum = row[kSum * padded_channels];
        const double shift = row[kPivot * padded_channels] - pivot, shifted = part_count * shift;
        count += part_count;
        total += part_sum + shifted;
        square_total += row[kSquareSum * padded_channels] + shift * (2 * part_sum + shifted);
    }
    double* const own = sums + thread_index();
    own[0] = count;
    own[kWarps * 32] = total;
    own[2 * kWarps * 32] = square_total;
    sync_threads();
    if (warp() > 0 || channel >= channels) return;
    for (int other = 1; other < kWarps; ++other) {
        const double* const theirs = own + other * kWarpSize;
        count += theirs[0];
        total += theirs[kWarps * 32];
        square_total += theirs[2 * kWarps * 32];
    }
    const double deviations = square_total - total * total / count;
    sum[channel] = static_cast<float>(count * pivot + total);
    m2[channel] = deviations < 0 ? 0.f : static_cast<float>(deviations);  // by rounding; NaN stays
}

}  // namespace

void sum_partials(const float* partials, int64_t parts, int padded_channels, int rows, int channels,
                  float* first, float* second, Stream stream) {
    const Dim3 grid{static_cast<unsigned>(ceil_div(channels, kWarpSize) * rows)};
    launch<sum_partials_kernel>(grid, kWarps * kWarpSize, 0, stream, partials, parts, rows, padded_channels,
                                channels, first, second);
}

void merge_statistics(const float* partials, int64_t parts, int padded_channels, int channels,
                      const ChannelStatistics& statistics, Stream stream) {
    const Dim3 grid{static_cast<unsigned>(ceil_div(channels, kWarpSize))};
    launch<merge_statistics_kernel>(grid, kWarps * kWarpSize, 0, stream, partials, parts, padded_channels,
                                    channels, static_cast<float*>(statistics.sum),
                                    static_cast<float*>(statistics.m2));
}

}  // namespace ck::cuda
