// SPDX-License-Identifier: MIT
// Where the points of 32 consecutive queries of one head lie in a level. Queries of neighbouring pixels look
// at neighbouring pixels, so most of them need not be looked at by a warp whose tile is elsewhere.
#pragma once

#include "deformable_attention/cuda/problem.h"

namespace ck::cuda {

constexpr int kBoxQueries = kWarpSize;

inline int64_t query_blocks(int64_t queries) { return ceil_div(queries, kBoxQueries); }

// Of the upper left pixels of all points inside, both ends included; with none, nothing is in it.
struct Box {
    int left, right, top, bottom;
};

constexpr int kBoxNumbers = 4;

// Writes (batch, heads, levels, query_blocks) boxes, of kBoxNumbers numbers.
void find_query_boxes(const Problem& problem, const float* locations, int* boxes, Stream stream);

}  // namespace ck::cuda
