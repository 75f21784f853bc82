// SPDX-License-Identifier: MIT
// How an image batch is divided among warps. A warp has 64 channels, two a lane, of kColumns adjacent
// columns. The warps of a warp group stand side by side and walk down the rows of a row tile, a run of rows
// of one image, together. The warp groups of a block walk row tiles of their own, `row_tiles_per_warp_group`
// row tiles one after the other.
#pragma once

#include <algorithm>
#include <stdexcept>
#include <string>

#include "cuda/runtime.h"
#include "local_aggregation/params.h"

namespace ck::cuda {

constexpr int kGroupChannels = 64;
// Divides the usual widths 7, 14, 28, 56, 42, 84; an input row is read (kColumns + K - 1) / kColumns times.
constexpr int kColumns = 7;
constexpr int kMaxWarps = 4;
constexpr int kMaxThreads = 32 * kMaxWarps;
constexpr int kMaxRows = 1 << 30;

struct Tiling {
    int channel_groups;            // of 64 channels
    int column_tiles;              // what the warps of a warp group cover, side by side
    int column_warps;              // of a warp group
    int warp_groups;               // of a block
    int row_tiles;                 // of an image
    int rows_per_tile;             // of a row tile; the last one of an image can have fewer
    int row_tiles_per_warp_group;  // row tiles of a warp group
    int all_row_tiles;             // of all images
    int chunks;                    // of row tiles; a block has one chunk, one tile and one group

    constexpr int threads() const { return 32 * column_warps * warp_groups; }
    constexpr int64_t parts() const { return int64_t{chunks} * column_tiles; }  // blocks of a group
    constexpr int64_t blocks() const { return parts() * channel_groups; }
    // Whole images need no halo rows: nothing lies above the first row and below the last one.
    constexpr bool whole_images() const { return row_tiles == 1; }
    // Output columns that a warp group covers.
    constexpr int columns() const { return column_warps * kColumns; }
    constexpr int padded_channels() const { return channel_groups * kGroupChannels; }
};

// `fixed_rows`: what a block does beside walking, in the time it takes for so many rows. `max_row_tiles`:
// that a warp group may take one after the other.
inline Tiling choose_tiling(const LocalAggregationShape& shape, int kernel, int fixed_rows,
                            int max_row_tiles) {
    if (shape.batch * shape.height > kMaxRows) {
        throw std::invalid_argument("x: expected at most 2^30 rows in all images, got " +
                                    std::to_string(shape.batch * shape.height));
    }
    Tiling tiling;
    tiling.channel_groups = static_cast<int>(ceil_div(shape.channels, kGroupChannels));
    const int columns = static_cast<int>(ceil_div(shape.width, kColumns));  // of warps
    tiling.column_tiles = static_cast<int>(ceil_div(columns, kMaxWarps));
    tiling.column_warps = static_cast<int>(ceil_div(columns, tiling.column_tiles));
    const int64_t across = int64_t{tiling.column_tiles} * tiling.channel_groups;

    const int64_t processors = multiprocessor_count();
    // Narrow images share a block, and the filters that it loads, when there are blocks enough.
    tiling.warp_groups = kMaxWarps / tiling.column_warps;
    while (tiling.warp_groups > 1 && shape.batch * across < tiling.warp_groups * processors)
        tiling.warp_groups /= 2;

    // A processor has four schedulers. One whose warps are few waits for them, as if it had one more; so the
    // time is about (warps + 1) · rows. More row tiles mean more warps and more halo rows.
    const int warps = tiling.column_warps * tiling.warp_groups;
    int64_t best = INT64_MAX;
    const auto consider = [&](int rows_per_tile, int row_tiles, int64_t row_tiles_per_warp_group) {
        const int64_t chunks =
            ceil_div(shape.batch * row_tiles, tiling.warp_groups * row_tiles_per_warp_group);
        const int64_t load = ceil_div(chunks * across * warps, 4 * processors);
        // A halo row is about half the work of another.
        const int64_t halves = 2 * rows_per_tile + (row_tiles == 1 ? kernel / 2 : kernel - 1);
        const int64_t time = (load + 1) * (row_tiles_per_warp_group * halves + 2 * fixed_rows);
        if (time > best) return;
        best = time;
        tiling.row_tiles = row_tiles;
        tiling.rows_per_tile = rows_per_tile;
        tiling.row_tiles_per_warp_group = static_cast<int>(row_tiles_per_warp_group);
        tiling.all_row_tiles = static_cast<int>(shape.batch * row_tiles);
        tiling.chunks = static_cast<int>(chunks);
    };
    constexpr int kMinRows = 4;
    for (int parts = 1; parts == 1 || shape.height >= kMinRows * parts; parts += (parts + 3) / 4) {
        const int rows_per_tile = static_cast<int>(ceil_div(shape.height, parts));
        const int row_tiles = static_cast<int>(ceil_div(shape.height, rows_per_tile));
        const int64_t walks = ceil_div(shape.batch * row_tiles, tiling.warp_groups);
        consider(rows_per_tile, row_tiles, 1);
        // So many row tiles that every scheduler has at most `load` warps.
        for (int load = 1; load <= 8 && max_row_tiles > 1; ++load) {
            const int64_t blocks = std::max<int64_t>(1, load * 4 * processors / (warps * across));
            consider(rows_per_tile, row_tiles, std::min<int64_t>(max_row_tiles, ceil_div(walks, blocks)));
        }
    }
    if (tiling.blocks() > INT32_MAX) {
        throw std::invalid_argument("x: too large for one launch, " + std::to_string(tiling.blocks()) +
                                    " blocks");
    }
    return tiling;
}

}  // namespace ck::cuda
