// SPDX-License-Identifier: MIT
// Gradients of locations and weights. Tasks are those of the forward pass. With s the value at a point and
// g the gradient of the result, both of D channels, the gradient of the weight is g·s and that of the
// location weight · g·(∂s/∂x, ∂s/∂y): both follow from the products of g with the point's four pixels.
#include "cpu/parallel.h"
#include "cpu/workspace.h"
#include "deformable_attention/cpu/corners.h"
#include "deformable_attention/cpu/launch.h"
#include "deformable_attention/cpu/packed_value.h"

namespace ck::CK_ISA {
namespace {

// Lanes of four vectors, added up: four numbers.
template <class V>
CK_INLINE void add_lanes(V a, V b, V c, V d, Element<V>* sums) {
    if constexpr (kLanesOf<V> > 4) {
        using Indices = MakeLaneIndices<kLanesOf<V> / 2>;
        const auto folded = [](V x) __attribute__((always_inline)) {
            return low_half(x, Indices{}) + high_half(x, Indices{});
        };
        add_lanes(folded(a), folded(b), folded(c), folded(d), sums);
    } else if constexpr (kLanesOf<V> == 4) {
        const V ab = shuffle<0, 4, 1, 5>(a, b) + shuffle<2, 6, 3, 7>(a, b);  // a, b, a, b
        const V cd = shuffle<0, 4, 1, 5>(c, d) + shuffle<2, 6, 3, 7>(c, d);
        store(sums, shuffle<0, 1, 4, 5>(ab, cd) + shuffle<2, 3, 6, 7>(ab, cd));
    } else {
        static_assert(kLanesOf<V> == 2);
        store(sums, shuffle<0, 2>(a, b) + shuffle<1, 3>(a, b));
        store(sums + 2, shuffle<0, 2>(c, d) + shuffle<1, 3>(c, d));
    }
}

// The products of `grad` with the four pixels of a point; 0 for one that is outside.
template <class A>
CK_INLINE void multiply_pixels(const Corners<A>& corners, int64_t point, const HeadPixels<A>& pixels,
                               const A* grad, int64_t vectors, A* products) {
    using V = Vec<A>;
    constexpr int L = kLanes<A>;
    V sum[4] = {};
    if (corners.all_inside(point)) {
        const A* source[4];
        for (int corner = 0; corner < 4; ++corner)
            source[corner] = pixels.pixel(corners.pixel[corner][point]);
        for (int64_t v = 0; v < vectors; ++v) {
            const V channels = load<V>(grad + v * L);
#pragma GCC unroll 4
            for (int corner = 0; corner < 4; ++corner)
                sum[corner] += channels * load<V>(source[corner] + v * L);
        }
    } else {
        for (int corner = 0; corner < 4; ++corner) {
            const int64_t pixel = corners.pixel[corner][point];
            if (pixel < 0) continue;
            for (int64_t v = 0; v < vectors; ++v)
                sum[corner] += load<V>(grad + v * L) * load<V>(pixels.pixel(pixel) + v * L);
        }
    }
    add_lanes(sum[0], sum[1], sum[2], sum[3], products);
}

// The gradients of a block's points on one level, from the products of each; they replace x, y and weight.
template <class A>
void finish_points(const Level& level, int64_t points, const A* products, const Corners<A>& corners) {
    using V = Vec<A>;
    for (int64_t i = 0; i < points; i += kLanes<A>) {
        V of[4] = {};
        for (int lane = 0; lane < kLanes<A>; ++lane) {
#pragma GCC unroll 4
            for (int corner = 0; corner < 4; ++corner)
                of[corner][lane] = i + lane < points ? products[4 * (i + lane) + corner] : A{};
        }
        const V right = load<V>(corners.right + i), down = load<V>(corners.down + i);
        const V weight = load<V>(corners.weight + i);
        const V upper = of[0] + right * (of[1] - of[0]), lower = of[2] + right * (of[3] - of[2]);
        const V across = (of[1] - of[0]) + down * ((of[3] - of[2]) - (of[1] - of[0]));
        store(corners.x + i, weight * across * static_cast<A>(level.width));
        store(corners.y + i, weight * (lower - upper) * static_cast<A>(level.height));
        store(corners.weight + i, upper + down * (lower - upper));
    }
}

template <class A>
void write_points(const DeformableAttentionShape& shape, const QueryBlock& block, int level,
                  const Corners<A>& corners, A* grad_locations, A* grad_weights) {
    int64_t point = 0;
    for (int64_t query = 0; query < block.count; ++query) {
        const int64_t first = first_point(shape, block, query, level);
        for (int64_t i = first; i < first + shape.points; ++i, ++point) {
            grad_locations[2 * i] = corners.x[point];
            grad_locations[2 * i + 1] = corners.y[point];
            grad_weights[i] = corners.weight[point];
        }
    }
}

template <class T>
void backward_sampling(const DeformableAttentionBackwardSampling& params, int threads) {
    using A = Accumulator<T>;
    const DeformableAttentionShape& shape = params.shape;
    const int64_t queries = block_queries(shape, 1), points = queries * shape.points;
    const int64_t vectors = ceil_div(shape.head_dim, kLanes<A>), padded = vectors * kLanes<A>;
    const int64_t scratch = Corners<A>::size(points) + 4 * points + queries * padded;
    const int64_t aligned_scratch = round_up(scratch, kLanes<A>), blocks = ceil_div(shape.queries, queries);
    PackedValue<T> value(params.value, shape);
    A* memory = static_cast<A*>(workspace((value.size() + threads * aligned_scratch) * sizeof(A)));
    A* const scratches = memory + value.size();
    const int64_t row_stride = int64_t{shape.heads} * shape.head_dim;
    for (int64_t batch = 0; batch < shape.batch; ++batch) {
        value.pack(batch, memory, threads);
        parallel_for(threads, shape.heads * blocks, [&](int64_t index, int thread) {
            QueryBlock block{batch, index / blocks, index % blocks * queries, queries};
            if (block.count > shape.queries - block.first) block.count = shape.queries - block.first;
            const Corners<A> corners(scratches + thread * aligned_scratch, points);
            A* const grads = scratches + thread * aligned_scratch + Corners<A>::size(points);
            A* const products = grads + queries * padded;
            const int64_t row = (batch * shape.queries + block.first) * shape.heads + block.head;
            pack_rows<A>(static_cast<const T*>(params.grad_out) + row * shape.head_dim, row_stride,
                         block.count, shape.head_dim, A{1}, grads, static_cast<int>(padded));
            const HeadPixels<A> pixels = value.head(batch, block.head);
            for (int level = 0; level < shape.level_count; ++level) {
                read_points(shape, block, level, static_cast<const A*>(params.locations),
                            static_cast<const A*>(params.weights), corners);
                const int64_t count = block.count * shape.points;
                find_corners(shape.levels[level], count, corners);
                const HeadPixels<A> of_level{pixels.pixel(shape.levels[level].start), pixels.stride};
                for (int64_t query = 0; query < block.count; ++query) {
                    for (int64_t p = query * shape.points; p < (query + 1) * shape.points; ++p)
                        multiply_pixels(corners, p, of_level, grads + query * padded, vectors,
                                        products + 4 * p);
                }
                finish_points(shape.levels[level], count, products, corners);
                write_points(shape, block, level, corners, static_cast<A*>(params.grad_locations),
                             static_cast<A*>(params.grad_weights));
            }
        });
    }
}

}  // namespace

void deformable_attention_backward_sampling(const DeformableAttentionBackwardSampling& params, DType dtype,
                                            int threads) {
    switch (dtype) {
        case DType::float32:
            return backward_sampling<float>(params, threads);
        case DType::float64:
            return backward_sampling<double>(params, threads);
        case DType::bfloat16:
            return backward_sampling<BFloat16>(params, threads);
        case DType::float16:
            return backward_sampling<Half>(params, threads);
    }
}

}  // namespace ck::CK_ISA
