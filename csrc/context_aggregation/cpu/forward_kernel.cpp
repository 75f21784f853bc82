// SPDX-License-Identifier: MIT
// Forward of the mix. A task is a run of queries of one (batch, head). It walks over the keys in tiles that
// stay close to the first-level cache, with all its queries for each (online softmax), so no more than kRows
// rows of scores of one tile ever exist. The dense term is added up in the same walk, the local term when the
// rows are stored.
#include "context_aggregation/cpu/attention_gemm.h"
#include "context_aggregation/cpu/launch.h"
#include "cpu/exp2.h"
#include "cpu/parallel.h"
#include "cpu/workspace.h"
#include "local_aggregation/cpu/window.h"

namespace ck::CK_ISA {
namespace {

// Queries per task: as many as make the packing of the keys negligible, few enough for threads to share a
// head.
constexpr int64_t kMaxQueries = 64 * kRows;
constexpr int64_t kMinQueries = 8 * kRows;
constexpr int64_t kTasksPerThread = 4;
// Bytes of packed keys and values in a tile.
constexpr int64_t kTileBytes = 64 << 10;
// Keys of a tile at most: each is one term of a plain sum, whose error grows with their number.
constexpr int64_t kMaxKeys = 256;

template <class A>
struct Tiling {
    int64_t dim;      // head_dim in whole vectors
    int64_t queries;  // per task, a multiple of kRows
    int64_t keys;     // per tile, a multiple of the lanes
    int64_t tasks_per_head;

    explicit Tiling(const ContextAggregationShape& shape, int threads) {
        constexpr int L = kLanes<A>;
        dim = round_up(shape.head_dim, L);
        const int64_t fitting = kTileBytes / (2 * dim * static_cast<int64_t>(sizeof(A)));
        const int64_t most_keys = fitting < kMaxKeys ? fitting : kMaxKeys;
        keys = round_up(ceil_div(shape.tokens, ceil_div(shape.tokens, most_keys)), L);
        // The results of a row do not depend on the rows it shares a task with, so this may follow the
        // threads.
        const int64_t wanted = ceil_div(kTasksPerThread * threads, shape.batch * shape.heads);
        const int64_t share = ceil_div(shape.tokens, wanted);
        const int64_t limited = share < kMinQueries ? kMinQueries : share > kMaxQueries ? kMaxQueries : share;
        queries = round_up(limited < shape.tokens ? limited : shape.tokens, kRows);
        tasks_per_head = ceil_div(shape.tokens, queries);
    }
};

// The scratch of one task, each part at a multiple of the vector size.
template <class A>
struct Scratch {
    A *q, *dynamic, *dense;     // of the queries
    A *keys, *values, *scores;  // of a tile
    A *row_max, *row_sum;

    // Lays the parts out from `memory` on; returns the number of elements, which null asks for alone.
    int64_t assign(A* memory, const Tiling<A>& tiling, bool has_dense) {
        int64_t used = 0;
        const auto take = [&](int64_t count) {
            A* part = memory ? memory + used : nullptr;
            used += round_up(count, 64 / static_cast<int64_t>(sizeof(A)));
            return part;
        };
        for (A** part : {&q, &dynamic}) *part = take(tiling.queries * tiling.dim);
        dense = take(has_dense ? tiling.queries * tiling.dim : 0);
        for (A** part : {&keys, &values}) *part = take(tiling.keys * tiling.dim);
        scores = take(tiling.keys * kRows);
        for (A** part : {&row_max, &row_sum}) *part = take(tiling.queries);
        return used;
    }
};

// Turns kRows rows of scores of a tile into exp(score - row_max). The first tile sets row_max and
// row_sum; a later one that finds a greater maximum rescales row_sum and the rows of `dynamic` that are there
// already.
template <class A>
void online_softmax(bool is_first, A* scores, int64_t keys, int64_t dim, A* row_max, A* row_sum, A* dynamic) {
    constexpr int L = kLanes<A>;
    using V = Vec<A>;
    constexpr A infinity = __builtin_inf();
    const int64_t vectors = ceil_div(keys, L), last_keys = keys - (vectors - 1) * L;
    for (int row = 0; row < kRows; ++row) {
        A* first = scores + row * L;
        A* last = first + (vectors - 1) * kRows * L;
        V most = keep_first(load<V>(last), last_keys, -infinity);
        store(last, most);
        for (int64_t v = 0; v < vectors - 1; ++v) most = max(most, load<V>(first + v * kRows * L));
        const A tile_max = reduce_max(most);
        const A new_max = is_first || tile_max > row_max[row] ? tile_max : row_max[row];
        // With nothing but -inf so far, subtract 0: each term is then 0 and not NaN.
        const A shift = new_max == -infinity ? 0 : new_max;
        V sum = {};
        for (int64_t v = 0; v < vectors; ++v) {
            A* place = first + v * kRows * L;
            const V weight = exp_nonpositive<V>(load<V>(place) - shift);
            store(place, weight);
            sum += weight;
        }
        const A tile_sum = reduce_add(sum);
        if (is_first || row_max[row] == new_max) {
            row_sum[row] = is_first ? tile_sum : row_sum[row] + tile_sum;
            row_max[row] = new_max;
            continue;
        }
        const A factor = exp_nonpositive(Vec<A, 1>{row_max[row] - shift})[0];
        row_max[row] = new_max;
        row_sum[row] = row_sum[row] * factor + tile_sum;
        for (int64_t c = 0; c < dim; c += L)
            store(dynamic + row * dim + c, load<V>(dynamic + row * dim + c) * factor);
    }
}

// kRows rows of the affinity in the layout of scores; rows that do not exist are zeros.
template <class A>
void pack_affinity(const A* affinity, int64_t tokens, int64_t rows, int64_t keys, A* scores) {
    constexpr int L = kLanes<A>;
    for (int64_t first = 0; first < keys; first += L) {
        const int count = keys - first < L ? static_cast<int>(keys - first) : L;
        for (int row = 0; row < kRows; ++row) {
            const Vec<A> value =
                row < rows ? load_first<Vec<A>>(affinity + row * tokens + first, count) : Vec<A>{};
            store(scores + (first * kRows) + row * L, value);
        }
    }
}

template <class T>
struct ForwardTask {
    using A = Accumulator<T>;

    const ContextAggregationForward& params;
    const Tiling<A>& tiling;
    const A* window_weight;  // (heads, taps, dim), or null
    Scratch<A> scratch;
    int64_t batch, head, begin, end;  // queries begin … end - 1

    void run() {
        const int64_t groups = ceil_div(end - begin, kRows);
        prepare(groups * kRows);
        for (int64_t first = 0; first < params.shape.tokens; first += tiling.keys) {
            const int64_t left = params.shape.tokens - first;
            add_tile(first, left < tiling.keys ? left : tiling.keys, groups);
        }
        normalize();
        store_rows();
    }

    void prepare(int64_t rows) {
        const int depth = params.shape.head_dim;
        const Tokens& q = params.q;
        pack_rows(q.head<const T>(batch, head) + begin * q.token_stride, q.token_stride, end - begin, depth,
                  static_cast<A>(params.shape.scale), scratch.q, static_cast<int>(tiling.dim));
        for (int64_t i = (end - begin) * tiling.dim; i < rows * tiling.dim; ++i) scratch.q[i] = 0;
        for (int64_t i = 0; i < rows * tiling.dim; ++i) scratch.dynamic[i] = 0;
        if (params.affinity) {
            for (int64_t i = 0; i < rows * tiling.dim; ++i) scratch.dense[i] = 0;
        }
    }

    void add_tile(int64_t first, int64_t keys, int64_t groups) {
        const int depth = params.shape.head_dim;
        const int64_t tokens = params.shape.tokens, dim = tiling.dim;
        const Tokens &k = params.k, &v = params.v;
        const int64_t vectors = pack_keys(k.head<const T>(batch, head) + first * k.token_stride,
                                          k.token_stride, keys, depth, scratch.keys);
        pack_rows(v.head<const T>(batch, head) + first * v.token_stride, v.token_stride, keys, depth, A(1),
                  scratch.values, static_cast<int>(dim));
        for (int64_t group = 0; group < groups; ++group) {
            const int64_t row = group * kRows;
            A* dynamic = scratch.dynamic + row * dim;
            compute_scores(scratch.q + row * dim, dim, scratch.keys, depth, vectors, scratch.scores, kRows);
            online_softmax(first == 0, scratch.scores, keys, dim, scratch.row_max + row,
                           scratch.row_sum + row, dynamic);
            add_product(scratch.scores, kRows, scratch.values, keys, dim, dynamic);
            if (params.affinity) {
                const A* affinity = static_cast<const A*>(params.affinity);
                pack_affinity(affinity + (head * tokens + begin + row) * tokens + first, tokens,
                              end - begin - row, keys, scratch.scores);
                add_product(scratch.scores, kRows, scratch.values, keys, dim, scratch.dense + row * dim);
            }
        }
    }

    void normalize() {
        using V = Vec<A>;
        const int64_t tokens = params.shape.tokens, dim = tiling.dim;
        const A alpha = static_cast<const A*>(params.alpha)[head];
        A* logsumexp =
            static_cast<A*>(params.logsumexp) + (batch * params.shape.heads + head) * tokens + begin;
        for (int64_t row = 0; row < end - begin; ++row) {
            const A sum = scratch.row_sum[row], factor = alpha / sum;
            logsumexp[row] = scratch.row_max[row] + natural_log(sum);
            for (int64_t c = 0; c < dim; c += kLanes<A>) {
                A* place = scratch.dynamic + row * dim + c;
                V value = load<V>(place) * factor;
                if (params.affinity) value += load<V>(scratch.dense + row * dim + c);
                store(place, value);
            }
        }
    }

    static float natural_log(float x) { return __builtin_logf(x); }
    static double natural_log(double x) { return __builtin_log(x); }

    void store_rows() {
        const ContextAggregationShape& shape = params.shape;
        const int64_t dim = tiling.dim;
        const Tokens &v = params.v, &out = params.out;
        T* target = out.head<T>(batch, head) + begin * out.token_stride;
        if (!window_weight) {
            return unpack_rows(scratch.dynamic, static_cast<int>(dim), end - begin, shape.head_dim, A(1),
                               target, out.token_stride);
        }
        const A* bias = static_cast<const A*>(params.local_bias);
        const Window<T> window{v.head<const T>(batch, head),
                               shape.width * v.token_stride,
                               v.token_stride,
                               shape.height,
                               shape.width,
                               shape.head_dim,
                               shape.kernel_height,
                               shape.kernel_width,
                               window_weight + head * shape.kernel_height * shape.kernel_width * dim,
                               dim,
                               bias ? bias + head * shape.head_dim : nullptr};
        window_pixels(window, begin, end, scratch.dynamic, dim, target, out.token_stride);
    }
};

template <class T>
void forward(const ContextAggregationForward& params, int threads) {
    using A = Accumulator<T>;
    const ContextAggregationShape& shape = params.shape;
    const Tiling<A> tiling(shape, threads);
    const int taps = shape.kernel_height * shape.kernel_width;
    const int64_t weight_count = params.local_weight ? shape.heads * taps * tiling.dim : 0;
    const bool has_dense = params.affinity != nullptr;
    const int64_t scratch_count = Scratch<A>{}.assign(nullptr, tiling, has_dense);
    A* memory = static_cast<A*>(workspace((weight_count + scratch_count * threads) * sizeof(A)));
    A* window_weight = params.local_weight ? memory : nullptr;
    if (window_weight) {
        parallel_for(threads, shape.heads, [&](int64_t head, int) {
            pack_window_weight(static_cast<const A*>(params.local_weight) + head * shape.head_dim * taps,
                               shape.head_dim, taps, false, window_weight + head * taps * tiling.dim,
                               tiling.dim);
        });
    }
    const int64_t tasks = shape.batch * shape.heads * tiling.tasks_per_head;
    parallel_for(threads, tasks, [&](int64_t index, int thread) {
        const int64_t pair = index / tiling.tasks_per_head;
        const int64_t begin = index % tiling.tasks_per_head * tiling.queries;
        const int64_t left = shape.tokens - begin;
        ForwardTask<T> task{params,
                            tiling,
                            window_weight,
                            {},
                            pair / shape.heads,
                            pair % shape.heads,
                            begin,
                            begin + (left < tiling.queries ? left : tiling.queries)};
        task.scratch.assign(memory + weight_count + thread * scratch_count, tiling, has_dense);
        task.run();
    });
}

}  // namespace

void context_aggregation_forward(const ContextAggregationForward& params, DType dtype, int threads) {
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
