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
constexpr int kMostRows = 1 << 30;

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
    constexpr int64_t parts() const { return int64_t{chunks} * tiles; }  // blocks of a group
    constexpr int64_t blocks() const { return parts() * groups; }
    // Whole images need no halo rows: nothing lies above the first row and below the last one.
    constexpr bool whole_images() const { return strips == 1; }
    // Output columns that a walker covers.
    constexpr int columns() const { return column_warps * kColumns; }
    constexpr int padded_channels() const { return groups * kGroupChannels; }
};

// `fixed_rows`: what a block does beside walking, in the time it takes for so many rows. `most_strips`: that
// a walker may take one after the other.
inline Tiling choose_tiling(const DepthwiseShape& shape, int kernel, int fixed_rows, int most_strips) {
    if (shape.batch * shape.height > kMostRows) {
        throw std::invalid_argument("x: expected at most 2^30 rows in all images, got " +
                                    std::to_string(shape.batch * shape.height));
    }
    Tiling tiling;
    tiling.groups = static_cast<int>(ceil_div(shape.channels, kGroupChannels));
    const int columns = static_cast<int>(ceil_div(shape.width, kColumns));  // of warps
    tiling.tiles = static_cast<int>(ceil_div(columns, kMostWarps));
    tiling.column_warps = static_cast<int>(ceil_div(columns, tiling.tiles));
    const int64_t across = int64_t{tiling.tiles} * tiling.groups;

    const int64_t processors = multiprocessor_count();
    // Narrow images share a block, and the filters that it loads, when there are blocks enough.
    tiling.walkers = kMostWarps / tiling.column_warps;
    while (tiling.walkers > 1 && shape.batch * across < tiling.walkers * processors) tiling.walkers /= 2;

    // A processor has four schedulers. One whose warps are few waits for them, as if it had one more; so the
    // time is about (warps + 1) · rows. More strips mean more warps and more halo rows.
    const int warps = tiling.column_warps * tiling.walkers;
    int64_t best = INT64_MAX;
    const auto consider = [&](int strip_rows, int strips, int64_t sequence) {
        const int64_t chunks = ceil_div(shape.batch * strips, tiling.walkers * sequence);
        const int64_t load = ceil_div(chunks * across * warps, 4 * processors);
        // A halo row is about half the work of another.
        const int64_t halves = 2 * strip_rows + (strips == 1 ? kernel / 2 : kernel - 1);
        const int64_t time = (load + 1) * (sequence * halves + 2 * fixed_rows);
        if (time > best) return;
        best = time;
        tiling.strips = strips;
        tiling.strip_rows = strip_rows;
        tiling.sequence = static_cast<int>(sequence);
        tiling.all_strips = static_cast<int>(shape.batch * strips);
        tiling.chunks = static_cast<int>(chunks);
    };
    constexpr int kLeastRows = 4;
    for (int parts = 1; parts == 1 || shape.height >= kLeastRows * parts; parts += (parts + 3) / 4) {
        const int strip_rows = static_cast<int>(ceil_div(shape.height, parts));
        const int strips = static_cast<int>(ceil_div(shape.height, strip_rows));
        const int64_t walks = ceil_div(shape.batch * strips, tiling.walkers);
        consider(strip_rows, strips, 1);
        // So many strips that every scheduler has at most `load` warps.
        for (int load = 1; load <= 8 && most_strips > 1; ++load) {
            const int64_t blocks = std::max<int64_t>(1, load * 4 * processors / (warps * across));
            consider(strip_rows, strips, std::min<int64_t>(most_strips, ceil_div(walks, blocks)));
        }
    }
    if (tiling.blocks() > INT32_MAX) {
        throw std::invalid_argument("x: too large for one launch, " + std::to_string(tiling.blocks()) +
                                    " blocks");
    }
    return tiling;
}

}  // namespace ck::cuda
