// SPDX-License-Identifier: MIT
// From locations to pixels: the four corners of every point of a block of queries, one level at a time.
#pragma once

#include "cpu/convert.h"
#include "cpu/simd.h"
#include "deformable_attention/params.h"

namespace ck::CK_ISA {

// Points of a block, about: what is known of them is a part of the first-level cache.
constexpr int64_t kBlockPoints = 512;

// Queries first … first + count - 1 of one image and head.
struct QueryBlock {
    int64_t batch, head, first, count;
};

inline int64_t block_queries(const DeformableAttentionShape& shape, int levels) {
    const int64_t fitting = kBlockPoints / (int64_t{shape.points} * levels);
    return fitting > 1 ? fitting : 1;
}

// Index among all points (B, Q, M, L, P) of a query's first point on a level.
inline int64_t first_point(const DeformableAttentionShape& shape, const QueryBlock& block, int64_t query,
                           int level) {
    const int64_t row = (block.batch * shape.queries + block.first + query) * shape.heads + block.head;
    return (row * shape.level_count + level) * shape.points;
}

template <class A>
using PixelIndex = std::conditional_t<sizeof(A) == 8, int64_t, int32_t>;

// What is known of the points of a block on one level: point p of query q is number q · P + p. Corners are in
// the order upper left, upper right, lower left, lower right.
template <class A>
struct Corners {
    static constexpr int kArrays = 13;

    // Up to whole vectors.
    static int64_t capacity(int64_t points) { return round_up(points, kLanes<A>); }
    // Numbers of memory for `points` points.
    static int64_t size(int64_t points) { return kArrays * capacity(points); }

    Corners(A* memory, int64_t points) {
        const int64_t length = capacity(points);
        const auto next = [&] {
            A* array = memory;
            memory += length;
            return array;
        };
        x = next();
        y = next();
        weight = next();
        for (int corner = 0; corner < 4; ++corner) pixel[corner] = reinterpret_cast<PixelIndex<A>*>(next());
        for (int corner = 0; corner < 4; ++corner) coefficient[corner] = next();
        right = next();
        down = next();
    }

    A *x, *y, *weight;        // as given
    PixelIndex<A>* pixel[4];  // of the level, row by row; -1: outside, as all four are if the point is
    A* coefficient[4];        // weight · part of the pixel
    A *right, *down;          // how far from the left and the upper corner, 0 … 1

    bool all_inside(int64_t point) const { return pixel[0][point] >= 0 && pixel[3][point] >= 0; }
};

// Reads the locations (x, y) and weights of a block on one level.
template <class A>
void read_points(const DeformableAttentionShape& shape, const QueryBlock& block, int level,
                 const A* locations, const A* weights, const Corners<A>& corners) {
    int64_t point = 0;
    for (int64_t query = 0; query < block.count; ++query) {
        const int64_t first = first_point(shape, block, query, level);
        for (int64_t i = first; i < first + shape.points; ++i, ++point) {
            corners.x[point] = locations[2 * i];
            corners.y[point] = locations[2 * i + 1];
            corners.weight[point] = weights[i];
        }
    }
    for (const int64_t end = Corners<A>::capacity(point); point < end; ++point)
        corners.x[point] = corners.y[point] = corners.weight[point] = 0;
}

// The whole number below x > -1 and the rest, 0 … 1.
template <class V>
struct Whole {
    using Integers = Vec<PixelIndex<Element<V>>, kLanesOf<V>>;

    explicit CK_INLINE Whole(V x) {
        const Integers truncated = __builtin_convertvector(x, Integers);
        number = truncated + (x < __builtin_convertvector(truncated, V));  // true is -1
        rest = x - __builtin_convertvector(number, V);
    }

    Integers number;
    V rest;
};

// Fills in what follows from `read_points`. A location far away, or none at all (NaN), is compared before it
// becomes an integer, which it might overflow.
template <class A>
void find_corners(const Level& level, int64_t points, const Corners<A>& corners) {
    using V = Vec<A>;
    using Integers = typename Whole<V>::Integers;
    const A width = static_cast<A>(level.width), height = static_cast<A>(level.height);
    for (int64_t i = 0; i < points; i += kLanes<A>) {
        V x = load<V>(corners.x + i) * width - A(0.5), y = load<V>(corners.y + i) * height - A(0.5);
        const Integers inside = (x > A(-1)) & (x < width) & (y > A(-1)) & (y < height);
        x = inside ? x : V{};
        y = inside ? y : V{};
        const Whole<V> column(x), row(y);
        const Integers is_left = inside & (column.number >= 0),
                       is_right = inside & (column.number + 1 < level.width);
        const Integers is_upper = row.number >= 0, is_lower = row.number + 1 < level.height;
        const Integers pixel = row.number * level.width + column.number, below = pixel + level.width;
        const Integers none = Integers{} - 1;
        store_bits(corners.pixel[0] + i, is_left & is_upper ? pixel : none);
        store_bits(corners.pixel[1] + i, is_right & is_upper ? pixel + 1 : none);
        store_bits(corners.pixel[2] + i, is_left & is_lower ? below : none);
        store_bits(corners.pixel[3] + i, is_right & is_lower ? below + 1 : none);
        const V weight = load<V>(corners.weight + i), left_part = A(1) - column.rest;
        const V upper = weight * (A(1) - row.rest), lower = weight * row.rest;
        store(corners.coefficient[0] + i, upper * left_part);
        store(corners.coefficient[1] + i, upper * column.rest);
        store(corners.coefficient[2] + i, lower * left_part);
        store(corners.coefficient[3] + i, lower * column.rest);
        store(corners.right + i, column.rest);
        store(corners.down + i, row.rest);
    }
}

// Calls function(first, Constant<N>) for groups of N vectors, 4 at most, of `vectors` next to each other.
template <class Function>
CK_INLINE void for_each_group(int64_t vectors, const Function& function) {
    int64_t first = 0;
    for (; first + 4 <= vectors; first += 4) function(first, Constant<4>{});
    switch (vectors - first) {
        case 3:
            return function(first, Constant<3>{});
        case 2:
            return function(first, Constant<2>{});
        case 1:
            return function(first, Constant<1>{});
        case 0:
            return;
    }
}

}  // namespace ck::CK_ISA
