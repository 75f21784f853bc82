// SPDX-License-Identifier: MIT
// How the forward pass and the gradients of locations and weights are divided. A group of lanes has a query
// of one head, a lane kLaneChannels of its channels; a block has consecutive queries of one head: those of
// neighbouring pixels mostly look at the same pixels, which then come from L1.
//
// Every lane of a group works out every point: half of the 155 instructions of a point with 16-bit elements.
// Shared among lanes it would be a quarter of them, and six shuffles for each point and lane, on the pipe of
// the loads. An encoder's 2.84 M points of 32 channels take 59 µs of 132 processors at 155, and L2 130 µs for
// their pixels.
#pragma once

#include "deformable_attention/cuda/channels.h"
#include "deformable_attention/cuda/point.h"
#include "deformable_attention/cuda/problem.h"

namespace ck::cuda {

constexpr int kLaneChannels = 8;
constexpr int kMaxGroupThreads = 256;
// Blocks that the registers of a processor are to be enough for: single elements, and float32 in two accesses
// a pixel, have more addresses.
template <class T, bool Aligned>
constexpr int kGroupBlocks = !Aligned         ? 2
                             : sizeof(T) == 2 ? 4
                                              : 3;

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
    using Access = Channels<T, W>;
    struct Row {
        Access accesses[kAccesses];

        CK_DEVICE void widen(float (&values)[kLaneChannels]) const {
            CK_UNROLL
            for (int access = 0; access < kAccesses; ++access) {
                float some[W];
                accesses[access].widen(some);
                CK_UNROLL
                for (int i = 0; i < W; ++i) values[access * W + i] = some[i];
            }
        }
    };

    int first, step, head_dim;

    CK_DEVICE LaneChannels(const Problem& problem, const QueryGroups& groups, const Place& place)
        : first(place.index * W), step(groups.lanes * W), head_dim(problem.head_dim) {}

    CK_DEVICE bool has(int access) const { return first + access * step < head_dim; }

    // The lane's first channel in a row of a head's channels.
    template <class Element>
    CK_DEVICE Element* first_of(Element* row) const {
        return row + first;
    }

    // From the lane's first channel on; zero where the row does not exist.
    CK_DEVICE Row read(const T* from, bool exists) const {
        Row result;
        CK_UNROLL
        for (int access = 0; access < kAccesses; ++access) {
            result.accesses[access] = {};
            if (exists && has(access)) result.accesses[access] = Access::read(from + access * step);
        }
        return result;
    }

    CK_DEVICE void write(T* to, const float (&values)[kLaneChannels]) const {
        CK_UNROLL
        for (int access = 0; access < kAccesses; ++access) {
            float some[W];
            CK_UNROLL
            for (int i = 0; i < W; ++i) some[i] = values[access * W + i];
            if (has(access)) Access::rounded(some).write(to + access * step);
        }
    }
};

// The pixels of a point: upper left, upper right, lower left, lower right. Those outside are zero whatever is
// in memory, so that even a weight of zero makes no NaN of them.
template <class T, int W>
struct Corners {
    typename LaneChannels<T, W>::Row rows[4];

    // `level` is the lane's first channel of the level's first pixel.
    CK_DEVICE Corners(const Point& point, const Map& map, const T* level, int64_t token_stride,
                      const LaneChannels<T, W>& channels) {
        const T* const upper = level + (point.row * map.width + point.column) * token_stride;
        const T* const lower = upper + map.width * token_stride;
        const bool top = map.has_row(point.row), bottom = map.has_row(point.row + 1);
        const bool left = map.has_column(point.column), right = map.has_column(point.column + 1);
        rows[0] = channels.read(upper, top && left);
        rows[1] = channels.read(upper + token_stride, top && right);
        rows[2] = channels.read(lower, bottom && left);
        rows[3] = channels.read(lower + token_stride, bottom && right);
    }
};

// Calls function(corners, map, point, weight, index) for all points of a query in turn, with `value` an
// image's pixels of a head. A point's location and weight are on their way while the one before is worked on.
template <class T, int W, class Function>
CK_DEVICE void for_each_point(const Problem& problem, const T* value, int64_t token_stride,
                              const LaneChannels<T, W>& channels, const float* locations,
                              const float* weights, const Function& function) {
    const int count = problem.points_of_query();
    Vec<float, 2> next_location = load<2>(locations);
    float next_weight = weights[0];
    int index = 0;
    CK_NO_UNROLL
    for (int i = 0; i < problem.level_count; ++i) {
        const Map map(problem.levels[i]);
        const T* const level = channels.first_of(value) + problem.levels[i].start * token_stride;
        CK_NO_UNROLL
        for (const int end = index + problem.points; index < end;) {
            const Point point(next_location, map);
            const float weight = next_weight;
            const int next = index + 1;
            if (next < count) {
                next_location = load<2>(locations + 2 * next);
                next_weight = weights[next];
            }
            function(Corners<T, W>(point, map, level, token_stride, channels), map, point, weight, index);
            index = next;
        }
    }
}

}  // namespace ck::cuda
