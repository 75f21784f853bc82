// SPDX-License-Identifier: MIT
// How the forward pass and the gradients of locations and weights are divided. A group of lanes has a query
// of one head, a lane kLaneChannels of its channels; a block has consecutive queries of one head: those of
// neighbouring pixels mostly look at the same pixels, which then come from L1.
//
// Every lane of a group works out every point, which costs some 35 of the 110 instructions of a point with
// 16-bit elements. To share that work would take five shuffles for each point and lane, on the pipe of the
// loads, which is the busier one.
#pragma once

#include "deformable_attention/cuda/point.h"
#include "deformable_attention/cuda/problem.h"

namespace ck::cuda {

constexpr int kLaneChannels = 8;
constexpr int kMaxGroupThreads = 256;

struct QueryGroups {
    int lanes;    // of a group, a power of two
    int threads;  // of a block
    int tiles;    // of queries, of an image and head; a block has one

    constexpr int queries_per_block() const { return threads / lanes; }
};

inline QueryGroups choose_groups(const Problem& problem) {
    QueryGroups groups{1, kMaxGroupThreads, 0};
    while (groups.lanes * kLaneChannels < problem.head_dim) groups.lanes *= 2;
    static_assert(kMaxHeadDim <= kWarpSize * kLaneChannels);
    // A few queries need no whole block.
    groups.threads = static_cast<int>(
        std::min<int64_t>(kMaxGroupThreads, round_up(problem.queries * groups.lanes, kWarpSize)));
    const int64_t tiles = ceil_div(problem.queries, groups.queries_per_block());
    grid_of(tiles * problem.heads * problem.batch);
    groups.tiles = static_cast<int>(tiles);
    return groups;
}

inline unsigned grid_of(const Problem& problem, const QueryGroups& groups) {
    return grid_of(int64_t{groups.tiles} * problem.heads * problem.batch);
}

// Elements of an access: 16 bytes where everything that lanes read and write in several elements lies so.
template <class T, bool Aligned>
constexpr int kAccess = Aligned ? kVector<T> : 1;

template <class T>
bool is_aligned(const Problem& problem, const void* rows) {
    return problem.head_dim * sizeof(T) % 16 == 0 && is_multiple(rows, 16);
}

template <class T>
bool is_aligned(const Problem& problem, const Tokens& value) {
    const auto divides = [](int64_t elements) { return elements * static_cast<int>(sizeof(T)) % 16 == 0; };
    return is_aligned<T>(problem, value.data) && (problem.batch == 1 || divides(value.batch_stride)) &&
           divides(value.token_stride) && (problem.heads == 1 || divides(value.head_stride));
}

// What a lane works on.
struct Place {
    int head, index;       // index: of the lane in its group
    int64_t image, query;  // queries beyond the last one are none

    CK_DEVICE Place(const Problem& problem, const QueryGroups& groups) {
        // Heads next to each other: what they read of locations and weights lies together.
        const unsigned block = block_index().x, heads = problem.heads, tiles = groups.tiles;
        const unsigned thread = thread_index(), lanes = groups.lanes;
        head = static_cast<int>(block % heads);
        image = block / heads / tiles;
        index = static_cast<int>(thread % lanes);
        query = int64_t{block / heads % tiles} * groups.queries_per_block() + thread / lanes;
    }

    // Of queries and heads, the number of this one.
    CK_DEVICE int64_t row(const Problem& problem) const {
        return (image * problem.queries + query) * problem.heads + head;
    }
};

// The channels of a lane: accesses of W elements, each next to those of the group's other lanes.
template <class T, int W>
struct LaneChannels {
    static constexpr int kAccesses = kLaneChannels / W;
    struct Row {
        Vec<T, W> accesses[kAccesses];

        CK_DEVICE float operator[](int channel) const {
            return to_float(accesses[channel / W].data[channel % W]);
        }
    };

    int first, step, head_dim;

    CK_DEVICE LaneChannels(const Problem& problem, const QueryGroups& groups, const Place& place)
        : first(place.index * W), step(groups.lanes * W), head_dim(problem.head_dim) {}

    CK_DEVICE bool has(int access) const { return first + access * step < head_dim; }

    // Of a pixel or query whose channels are at row + offset; zero where it does not exist.
    CK_DEVICE Row read(const T* row, int64_t offset, bool exists) const {
        Row result;
        CK_UNROLL
        for (int access = 0; access < kAccesses; ++access) {
            result.accesses[access] = {};
            if (exists && has(access)) {
                result.accesses[access] = load<W>(row + (offset + first + access * step));
            }
        }
        return result;
    }

    CK_DEVICE void write(T* row, const float (&values)[kLaneChannels]) const {
        CK_UNROLL
        for (int access = 0; access < kAccesses; ++access) {
            Vec<T, W> rounded;
            CK_UNROLL
            for (int i = 0; i < W; ++i) rounded.data[i] = from_float<T>(values[access * W + i]);
            if (has(access)) store(row + first + access * step, rounded);
        }
    }
};

// The pixels of a point in `rows`, the level's: upper left, upper right, lower left, lower right. Those
// outside are zero whatever is in memory, so that even a weight of zero makes no NaN of them.
template <class T, int W>
struct Corners {
    typename LaneChannels<T, W>::Row rows[4];

    CK_DEVICE Corners(const Point& point, const Map& map, const T* level, int64_t token_stride,
                      const LaneChannels<T, W>& channels) {
        const int64_t offset = (point.row * map.width + point.column) * token_stride;
        const int64_t below = map.width * token_stride;
        const bool top = map.has_row(point.row), bottom = map.has_row(point.row + 1);
        const bool left = map.has_column(point.column), right = map.has_column(point.column + 1);
        rows[0] = channels.read(level, offset, top && left);
        rows[1] = channels.read(level, offset + token_stride, top && right);
        rows[2] = channels.read(level, offset + below, bottom && left);
        rows[3] = channels.read(level, offset + below + token_stride, bottom && right);
    }
};

// Calls function(level, map, point, weight, index) for all points of a query in turn; a point's location and
// weight are on their way while the one before is worked on.
template <class Function>
CK_DEVICE void for_each_point(const Problem& problem, const float* locations, const float* weights,
                              const Function& function) {
    const int count = problem.points_of_query();
    Vec<float, 2> next_location = load<2>(locations);
    float next_weight = weights[0];
    int index = 0;
    CK_NO_UNROLL
    for (int level = 0; level < problem.level_count; ++level) {
        const Map map(problem.levels[level]);
        CK_NO_UNROLL
        for (int i = 0; i < problem.points; ++i, ++index) {
            const Point point(next_location, map);
            const float weight = next_weight;
            if (index + 1 < count) {
                next_location = load<2>(locations + 2 * (index + 1));
                next_weight = weights[index + 1];
            }
            function(level, map, point, weight, index);
        }
    }
}

}  // namespace ck::cuda
