// SPDX-License-Identifier: MIT
// How an image batch is divided among warps. A warp has 64 channels, two a lane, of kColumns adjacent
// columns. The warps of a walker stand side by side and walk down the rows of a strip, a run of rows of one
// image, together. The walkers of a block walk strips of their own, `sequence` strips one after the other.
#pragma once

#include <algorithm>
#include <stdexcept>
#include <string>

#include "common/runtime.h"
#include "local_aggregation/params.h"

namespace ck::cuda {

constexpr int kGroupChannels = 64;
// Divides the usual widths 7, 14, 28, 56, 42, 84; an input row is read (kColumns + K - 1) / kColumns times.
constexpr int kColumns = 7;
constexpr int kMostWarps = 4;
constexpr int kMostThreads = 32 * kMostWarps;
constexpr int kMostStrips = 1 << 30;

struct Tiling {
    int groups;        // of 64 channels
    int tiles;         // of columns: what the warps of a walker cover, side by side
    int column_warps;  // of a walker
    int walkers;       // of a block
    int strips;        // of an image
    int strip_rows;    // of a strip; the last one of an image can have fewer
    int sequence;      // strips of a walker
    int all_strips;    // of all images
    int chunks;        // of strips; a block has one chunk, one tile and one group

    constexpr int threads() const { return 32 * column_warps * walkers; }
    constexpr int64_t blocks() const { return int64_t{chunks} * tiles * groups; }
    // Whole images need no halo rows: nothing lies above the first row and below the last one.
    constexpr bool whole_images() const { return strips == 1; }
    // Output columns that a walker covers.
    constexpr int columns() const { return column_warps * kColumns; }
    constexpr int padded_channels() const { return groups * kGroupChannels; }
};

// `fixed_rows`: what a block does beside walking, in the time it takes for so many rows.
inline Tiling choose_tiling(const DepthwiseShape& shape, int kernel, int fixed_rows) {
    if (shape.batch > kMostStrips) {
        throw std::invalid_argument("x: expected at most 2^30 images, got " + std::to_string(shape.batch));
    }
    Tiling tiling;
    tiling.groups = static_cast<int>(ceil_div(shape.channels, kGroupChannels));
    const int columns = static_cast<int>(ceil_div(shape.width, kColumns));  // of warps
    tiling.tiles = static_cast<int>(ceil_div(columns, kMostWarps));
    tiling.column_warps = static_cast<int>(ceil_div(columns, tiling.tiles));

    const int64_t processors = multiprocessor_count();
    // Narrow images share a block, and the filters that it loads, when there are blocks enough.
    const int64_t images = shape.batch * tiling.tiles * tiling.groups;
    tiling.walkers = kMostWarps / tiling.column_warps;
    while (tiling.walkers > 1 && images < tiling.walkers * processors) tiling.walkers /= 2;

    // A processor has four schedulers. One whose warps are few waits for them, as if it had one more; so the
    // time is about (warps + 1) · rows. More strips mean more warps and more halo rows.
    const int warps = tiling.column_warps * tiling.walkers;
    int64_t best = INT64_MAX;
    for (int divisor = 1; divisor == 1 || ceil_div(shape.height, divisor) >= 4;
         divisor += ceil_div(divisor, 4)) {
        const int strip_rows = static_cast<int>(ceil_div(shape.height, divisor));
        const int strips = static_cast<int>(ceil_div(shape.height, strip_rows));
        const int64_t all_strips = shape.batch * strips;
        if (all_strips > kMostStrips) break;
        const int64_t steps = strip_rows + (strips == 1 ? kernel / 2 : kernel - 1);
        const int64_t parts = ceil_div(all_strips, tiling.walkers);
        for (int rounds = 1; rounds <= 8; ++rounds) {
            const int64_t most_chunks =
                std::max<int64_t>(1, rounds * 4 * processors / (warps * tiling.tiles * tiling.groups));
            const int64_t sequence = ceil_div(parts, most_chunks);
            const int64_t chunks = ceil_div(parts, sequence);
            const int64_t load = ceil_div(chunks * tiling.tiles * tiling.groups * warps, 4 * processors);
            const int64_t time = (load + 1) * (sequence * steps + fixed_rows);
            if (time > best) continue;
            best = time;
            tiling.strips = strips;
            tiling.strip_rows = strip_rows;
            tiling.sequence = static_cast<int>(sequence);
            tiling.all_strips = static_cast<int>(all_strips);
            tiling.chunks = static_cast<int>(chunks);
        }
    }
    return tiling;
}

}  // namespace ck::cuda
