// SPDX-License-Identifier: MIT
// Gradient of value. A task owns the pixels of a band, some rows of one level, of one image and head, and
// adds to them what the points of all queries give, in their order: the same bits however many bands there
// are, and so for any number of threads.
#include "cpu/pack.h"
#include "cpu/parallel.h"
#include "cpu/workspace.h"
#include "deformable_attention/cpu/corners.h"
#include "deformable_attention/cpu/launch.h"

namespace ck::CK_ISA {
namespace {

// Bytes of a band's sums: they stay in the second-level cache. Every band looks at all points of its level.
constexpr int64_t kBandBytes = 1 << 20;
// Tasks per thread, so that threads have about the same to do.
constexpr int64_t kTasksPerThread = 2;

struct Band {
    int64_t batch, head;
    int level, first_row, rows;
};

// Rows of the bands of a level; the last band may have fewer.
int band_rows(const DeformableAttentionShape& shape, int level, int64_t row_bytes, int threads) {
    const int height = shape.levels[level].height;
    const int64_t owners = shape.batch * shape.heads * shape.level_count;
    int64_t bands = ceil_div(kTasksPerThread * threads, owners);
    const int64_t fitting = ceil_div(height * row_bytes, kBandBytes);
    if (bands < fitting) bands = fitting;
    return static_cast<int>(ceil_div(height, bands < height ? bands : height));
}

// Adds grad · coefficient to the pixels of a point that are among the `count` of the band from `begin` on.
template <int N, class A>
CK_INLINE void scatter_point(const Corners<A>& corners, int64_t point, int64_t begin, int64_t count,
                             const Vec<A> (&grad)[N], A* sums, int64_t stride) {
    using V = Vec<A>;
    constexpr int L = kLanes<A>;
    const auto add = [&](int corner) __attribute__((always_inline)) {
        A* target = sums + (corners.pixel[corner][point] - begin) * stride;
        const A coefficient = corners.coefficient[corner][point];
#pragma GCC unroll 4
        for (int v = 0; v < N; ++v) store(target + v * L, load<V>(target + v * L) + grad[v] * coefficient);
    };
    // In the order of pixels.
    if (corners.pixel[0][point] >= begin && corners.pixel[3][point] >= begin &&
        corners.pixel[3][point] < begin + count) {
        add(0);
        add(1);
        add(2);
        add(3);
        return;
    }
    for (int corner = 0; corner < 4; ++corner) {
        const int64_t pixel = corners.pixel[corner][point];
        if (pixel >= begin && pixel < begin + count) add(corner);
    }
}

template <class T>
void add_queries(const DeformableAttentionBackwardValue& params, const Band& band, int64_t queries,
                 Accumulator<T>* scratch, Accumulator<T>* sums, int64_t padded) {
    using A = Accumulator<T>;
    using V = Vec<A>;
    constexpr int L = kLanes<A>;
    const DeformableAttentionShape& shape = params.shape;
    const Level& level = shape.levels[band.level];
    const int64_t begin = int64_t{band.first_row} * level.width, count = int64_t{band.rows} * level.width;
    const int64_t row_stride = int64_t{shape.heads} * shape.head_dim, points = queries * shape.points;
    const Corners<A> corners(scratch, points);
    A* const grads = scratch + Corners<A>::size(points);
    for (int64_t first = 0; first < shape.queries; first += queries) {
        const int64_t rest = shape.queries - first;
        const QueryBlock block{band.batch, band.head, first, rest < queries ? rest : queries};
        read_points(shape, block, band.level, static_cast<const A*>(params.locations),
                    static_cast<const A*>(params.weights), corners);
        find_corners(level, block.count * shape.points, corners);
        const int64_t row = (block.batch * shape.queries + first) * shape.heads + block.head;
        pack_rows<A>(static_cast<const T*>(params.grad_out) + row * shape.head_dim, row_stride, block.count,
                     shape.head_dim, A{1}, grads, static_cast<int>(padded));
        for (int64_t query = 0; query < block.count; ++query) {
            for_each_group(padded / L, [&](int64_t group, auto size) __attribute__((always_inline)) {
                constexpr int N = decltype(size)::value;
                const int64_t channel = group * L;
                V grad[N];
                for (int v = 0; v < N; ++v) grad[v] = load<V>(grads + query * padded + channel + v * L);
                for (int64_t p = query * shape.points; p < (query + 1) * shape.points; ++p)
                    scatter_point(corners, p, begin, count, grad, sums + channel, padded);
            });
        }
    }
}

template <class T>
void backward_value(const DeformableAttentionBackwardValue& params, int threads) {
    using A = Accumulator<T>;
    const DeformableAttentionShape& shape = params.shape;
    const int64_t queries = block_queries(shape, 1), padded = round_up(shape.head_dim, kLanes<A>);
    const int64_t block_size = Corners<A>::size(queries * shape.points) + queries * padded;
    // The bands of a level, and the largest of all.
    int64_t bands = 0, most_pixels = 0;
    const auto rows_of = [&](int level) {
        return band_rows(shape, level, shape.levels[level].width * padded * int64_t{sizeof(A)}, threads);
    };
    for (int level = 0; level < shape.level_count; ++level) {
        const int rows = rows_of(level);
        const int64_t pixels = int64_t{rows} * shape.levels[level].width;
        bands += ceil_div(shape.levels[level].height, rows);
        if (pixels > most_pixels) most_pixels = pixels;
    }
    const int64_t scratch = block_size + most_pixels * padded;
    A* const memory = static_cast<A*>(workspace(threads * scratch * sizeof(A)));
    parallel_for(threads, shape.batch * shape.heads * bands, [&](int64_t index, int thread) {
        int64_t rest = index % bands;
        Band band{index / bands / shape.heads, index / bands % shape.heads, 0, 0, 0};
        for (int level = 0; level < shape.level_count; ++level) {
            const int rows = rows_of(level), height = shape.levels[level].height;
            const int64_t count = ceil_div(height, rows);
            if (rest < count) {
                band.level = level;
                band.first_row = static_cast<int>(rest) * rows;
                band.rows = rows < height - band.first_row ? rows : height - band.first_row;
                break;
            }
            rest -= count;
        }
        const Level& level = shape.levels[band.level];
        const int64_t pixels = int64_t{band.rows} * level.width;
        A* const sums = memory + thread * scratch + block_size;
        for (int64_t i = 0; i < pixels * padded; i += kLanes<A>) store(sums + i, Vec<A>{});
        add_queries<T>(params, band, queries, memory + thread * scratch, sums, padded);
        const int64_t first = band.batch * shape.pixels + level.start + int64_t{band.first_row} * level.width;
        unpack_rows<A>(
            sums, static_cast<int>(padded), pixels, shape.head_dim, A{1},
            static_cast<T*>(params.grad_value) + (first * shape.heads + band.head) * shape.head_dim,
            int64_t{shape.heads} * shape.head_dim);
    });
}

}  // namespace

void deformable_attention_backward_value(const DeformableAttentionBackwardValue& params, DType dtype,
                                         int threads) {
    switch (dtype) {
        case DType::float32:
            return backward_value<float>(params, threads);
        case DType::float64:
            return backward_value<double>(params, threads);
        case DType::bfloat16:
            return backward_value<BFloat16>(params, threads);
        case DType::float16:
            return backward_value<Half>(params, threads);
    }
}

}  // namespace ck::CK_ISA
