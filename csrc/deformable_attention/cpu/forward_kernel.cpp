// SPDX-License-Identifier: MIT
// Forward of deformable attention. A task is a block of queries of one image and head: neighbours look at
// about the same pixels, and one head's part of an image stays in the cache.
#include "cpu/parallel.h"
#include "cpu/workspace.h"
#include "deformable_attention/cpu/corners.h"
#include "deformable_attention/cpu/launch.h"
#include "deformable_attention/cpu/packed_value.h"

namespace ck::CK_ISA {
namespace {

// Adds the pixels around a point, times their coefficients, to `sum`; upper and lower ones are summed apart,
// so that an addition does not wait for the one before.
template <int N, class A>
CK_INLINE void add_point(const Corners<A>& corners, int64_t point, const HeadPixels<A>& pixels,
                         int64_t channel, Vec<A> (&upper)[N], Vec<A> (&lower)[N]) {
    using V = Vec<A>;
    constexpr int L = kLanes<A>;
    const auto add = [&](int corner, V(&sum)[N]) __attribute__((always_inline)) {
        const A* source = pixels.pixel(corners.pixel[corner][point]) + channel;
        const A coefficient = corners.coefficient[corner][point];
#pragma GCC unroll 4
        for (int v = 0; v < N; ++v) sum[v] += load<V>(source + v * L) * coefficient;
    };
    if (corners.all_inside(point)) {
        add(0, upper);
        add(2, lower);
        add(1, upper);
        add(3, lower);
        return;
    }
    // Not times zero: a pixel outside is whatever memory holds there.
    if (corners.pixel[0][point] >= 0) add(0, upper);
    if (corners.pixel[1][point] >= 0) add(1, upper);
    if (corners.pixel[2][point] >= 0) add(2, lower);
    if (corners.pixel[3][point] >= 0) add(3, lower);
}

template <class T>
void forward(const DeformableAttentionForward& params, int threads) {
    using A = Accumulator<T>;
    using V = Vec<A>;
    constexpr int L = kLanes<A>;
    const DeformableAttentionShape& shape = params.shape;
    const int64_t queries = block_queries(shape, shape.level_count), level_points = queries * shape.points;
    const int64_t scratch = shape.level_count * Corners<A>::size(level_points);
    const int64_t vectors = ceil_div(shape.head_dim, L), blocks = ceil_div(shape.queries, queries);
    PackedValue<T> value(params.value, shape);
    A* memory = static_cast<A*>(workspace((value.size() + threads * scratch) * sizeof(A)));
    A* const scratches = memory + value.size();
    for (int64_t batch = 0; batch < shape.batch; ++batch) {
        value.pack(batch, memory, threads);
        parallel_for(threads, shape.heads * blocks, [&](int64_t index, int thread) {
            QueryBlock block{batch, index / blocks, index % blocks * queries, queries};
            if (block.count > shape.queries - block.first) block.count = shape.queries - block.first;
            const auto corners_of = [&](int level) {
                return Corners<A>(scratches + thread * scratch + level * Corners<A>::size(level_points),
                                  level_points);
            };
            for (int level = 0; level < shape.level_count; ++level) {
                const Corners<A> corners = corners_of(level);
                read_points(shape, block, level, static_cast<const A*>(params.locations),
                            static_cast<const A*>(params.weights), corners);
                find_corners(shape.levels[level], block.count * shape.points, corners);
            }
            const HeadPixels<A> pixels = value.head(batch, block.head);
            for (int64_t query = 0; query < block.count; ++query) {
                const int64_t row = (batch * shape.queries + block.first + query) * shape.heads + block.head;
                T* out = static_cast<T*>(params.out) + row * shape.head_dim;
                for_each_group(vectors, [&](int64_t group, auto size) __attribute__((always_inline)) {
                    constexpr int N = decltype(size)::value;
                    const int64_t channel = group * L;
                    V upper[N] = {}, lower[N] = {};
                    for (int level = 0; level < shape.level_count; ++level) {
                        const Corners<A> corners = corners_of(level);
                        const HeadPixels<A> of_level{pixels.pixel(shape.levels[level].start), pixels.stride};
                        for (int64_t p = query * shape.points; p < (query + 1) * shape.points; ++p)
                            add_point(corners, p, of_level, channel, upper, lower);
                    }
                    for (int v = 0; v < N; ++v) {
                        const int64_t first = channel + v * L;
                        store_first(out + first, upper[v] + lower[v],
                                    static_cast<int>(shape.head_dim - first));
                    }
                });
            }
        });
    }
}

}  // namespace

void deformable_attention_forward(const DeformableAttentionForward& params, DType dtype, int threads) {
    switch (dtype) {
        case DType::float32:
            return forward<float>(params, threads);
        case DType::float64:
            return forward<double>(params, threads);
        case DType::bfloat16:
            return forward<BFloat16>(params, threads);
        case DType::float16:
            return forward<Half>(params, threads);
    }
}

}  // namespace ck::CK_ISA
