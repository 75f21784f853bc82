// SPDX-License-Identifier: MIT
// How the pixels of all levels are divided for the gradient of value. A warp has a tile of 8×8 pixels and 32
// channels of one head; where a level has few tiles and each many points, up to all warps of a block share a
// tile, each with a part of the queries. Square tiles: a point meets 1.27 of them on average, of runs of 64
// pixels two.
#pragma once

#include "deformable_attention/cuda/problem.h"

namespace ck::cuda {

constexpr int kTileSide = 8;
constexpr int kTilePixels = kTileSide * kTileSide;
constexpr int kTileChannels = 32;
constexpr int kTileWarps = 8;  // of a block
// Points of a warp, on average, above which another one shares its tile: below, adding the parts up costs
// more.
constexpr int kPointsPerWarp = 512;

struct TileLevel {
    Level level;
    int index;  // of the level
    int tiles_across, tiles;
    int warps;        // that share a tile, a power of two
    int first_block;  // of an image and head: the level's blocks begin there
};

struct TilePlan {
    TileLevel levels[kMaxLevels];
    int channel_groups;

    constexpr int tiles_per_block(int level) const { return kTileWarps / levels[level].warps; }
};

struct PlannedTiles {
    TilePlan plan;
    unsigned blocks;
};

// Levels of few tiles come first: their warps have most to do.
inline PlannedTiles plan_tiles(const Problem& problem) {
    TilePlan plan{};
    plan.channel_groups = static_cast<int>(ceil_div(problem.head_dim, kTileChannels));
    for (int i = 0; i < problem.level_count; ++i) {
        const Level level = problem.levels[i];
        const int64_t across = ceil_div(level.width, kTileSide);
        const int64_t tiles = across * ceil_div(level.height, kTileSide);
        plan.levels[i] = {level, i, static_cast<int>(across), static_cast<int>(tiles), 1, 0};
        const int64_t points = ceil_div(problem.queries * problem.points, tiles);
        int& warps = plan.levels[i].warps;
        while (warps < kTileWarps && points > int64_t{warps} * kPointsPerWarp) warps *= 2;
    }
    std::stable_sort(plan.levels, plan.levels + problem.level_count,
                     [](const TileLevel& a, const TileLevel& b) { return a.tiles < b.tiles; });
    int64_t blocks = 0;
    for (int i = 0; i < problem.level_count; ++i) {
        plan.levels[i].first_block = static_cast<int>(blocks);
        blocks += ceil_div(plan.levels[i].tiles, plan.tiles_per_block(i));
    }
    return {plan, grid_of(blocks * problem.batch * problem.heads * plan.channel_groups)};
}

}  // namespace ck::cuda
