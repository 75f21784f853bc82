// SPDX-License-Identifier: MIT
// A warp has 32 queries of one head, a lane one of them.
#include "deformable_attention/cuda/point.h"
#include "deformable_attention/cuda/query_boxes.h"

namespace ck::cuda {
namespace {

constexpr int kWarps = 4;

CK_DEVICE int smaller(int a, int b) { return a < b ? a : b; }
CK_DEVICE int larger(int a, int b) { return a > b ? a : b; }

CK_KERNEL(kWarps* kWarpSize)
query_boxes_kernel(Problem problem, int blocks, const float* locations, int* boxes) {
    const int64_t index = int64_t{block_index().x} * kWarps + shuffle(warp(), 0);
    const int head = static_cast<int>(index % problem.heads);
    const int64_t image = index / problem.heads / blocks;
    const int block = static_cast<int>(index / problem.heads % blocks);
    if (image >= problem.batch) return;
    const int64_t query = int64_t{block} * kBoxQueries + lane();
    const bool exists = query < problem.queries;
    const float* next = locations + 2 * ((image * problem.queries + query) * problem.heads + head) *
                                        problem.points_of_query();
    CK_NO_UNROLL
    for (int level = 0; level < problem.level_count; ++level) {
        const Map map(problem.levels[level]);
        Box box{INT32_MAX, INT32_MIN, INT32_MAX, INT32_MIN};
        for (int i = 0; i < problem.points; ++i, next += 2) {
            if (!exists) continue;
            const Point point(load<2>(next), map);
            if (!point.is_inside()) continue;
            box = {smaller(box.left, point.column), larger(box.right, point.column),
                   smaller(box.top, point.row), larger(box.bottom, point.row)};
        }
        CK_UNROLL
        for (int distance = kWarpSize / 2; distance > 0; distance /= 2) {
            box.left = smaller(box.left, shuffle_xor(box.left, distance));
            box.right = larger(box.right, shuffle_xor(box.right, distance));
            box.top = smaller(box.top, shuffle_xor(box.top, distance));
            box.bottom = larger(box.bottom, shuffle_xor(box.bottom, distance));
        }
        const int64_t row = (image * problem.heads + head) * problem.level_count + level;
        if (lane() == 0) {
            store(boxes + kBoxNumbers * (row * blocks + block),
                  Vec<int, kBoxNumbers>{box.left, box.right, box.top, box.bottom});
        }
    }
}

}  // namespace

void find_query_boxes(const Problem& problem, const float* locations, int* boxes, Stream stream) {
    const int64_t blocks = query_blocks(problem.queries);
    const unsigned grid = grid_of(ceil_div(blocks * problem.heads * problem.batch, kWarps));
    launch<query_boxes_kernel>({grid}, kWarps * kWarpSize, 0, stream, problem, static_cast<int>(blocks),
                               locations, boxes);
}

}  // namespace ck::cuda
