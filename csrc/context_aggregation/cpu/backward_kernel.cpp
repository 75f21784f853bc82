// SPDX-License-Identifier: MIT
// Backward of the mix. A task is a run of queries of one (batch, head), taken in blocks of rows whose scores
// and score gradients, over all keys, fit into the second-level cache: the softmax row term is then a sum
// over numbers at hand. The tasks of a head add up grad_k and grad_v of all keys; how many tasks share a head
// depends on the shape alone, so the sums are the same for any number of threads.
#include "context_aggregation/cpu/attention_gemm.h"
#include "context_aggregation/cpu/launch.h"
#include "cpu/exp2.h"
#include "cpu/parallel.h"
#include "cpu/workspace.h"
#include "local_aggregation/cpu/window.h"

namespace ck::CK_ISA {
namespace {

// A head is shared where there are fewer than kTargetTasks heads, as long as a task keeps kMinQueries
// queries, which make its packing of the keys and its share of the final sums small.
constexpr int64_t kTargetTasks = 16;
constexpr int64_t kMinQueries = 32 * kRows;
// Bytes of scores and score gradients of a block of rows, and its most rows.
constexpr int64_t kBlockBytes = 256 << 10;
constexpr int64_t kMaxRows = 8 * kRows;
// Vectors of keys that a block of rows works on at a time, so that they stay in the first-level cache.
constexpr int64_t kTileVectors = 4 * kKeyVectors;

template <class A>
struct Tiling {
    int64_t dim;      // head_dim in whole vectors
    int64_t vectors;  // of keys
    int64_t keys;     // in whole vectors
    int64_t rows;     // of a block, a multiple of kRows
    int64_t queries;  // per task
    int64_t tasks_per_head;

    explicit Tiling(const ContextAggregationShape& shape, int threads) {
        constexpr int L = kLanes<A>;
        const int64_t tokens = shape.tokens;
        dim = round_up(shape.head_dim, L);
        vectors = ceil_div(tokens, L);
        keys = vectors * L;
        const int64_t fitting = kBlockBytes / (2 * keys * static_cast<int64_t>(sizeof(A))) / kRows * kRows;
        const int64_t limited = fitting < 2 * kRows ? 2 * kRows : fitting > kMaxRows ? kMaxRows : fitting;
        rows = limited < tokens ? limited : round_up(tokens, kRows);
        const int64_t most = tokens / kMinQueries, wanted = ceil_div(kTargetTasks, shape.batch * shape.heads);
        const int64_t shares = wanted < most ? wanted : most;
        queries = shares > 1 ? round_up(ceil_div(tokens, shares), rows) : tokens;
        tasks_per_head = ceil_div(tokens, queries);
    }
};

// The scratch of one thread, each part at a multiple of the vector size.
template <class A>
struct Scratch {
    A *packed_keys, *packed_values, *keys;            // k and v for multiply_keys, and k row by row
    A *q, *grad_out, *grad_q, *scores, *grad_scores;  // of a block of rows
    A *row_shift, *row_sum, *row_term;

    // Lays the parts out from `memory` on; returns the number of elements, which null asks for alone.
    int64_t assign(A* memory, const Tiling<A>& tiling) {
        int64_t used = 0;
        const auto take = [&](int64_t count) {
            A* part = memory ? memory + used : nullptr;
            used += round_up(count, 64 / static_cast<int64_t>(sizeof(A)));
            return part;
        };
        for (A** part : {&packed_keys, &packed_values, &keys}) *part = take(tiling.keys * tiling.dim);
        for (A** part : {&q, &grad_out, &grad_q}) *part = take(tiling.rows * tiling.dim);
        for (A** part : {&scores, &grad_scores}) *part = take(tiling.rows * tiling.keys);
        for (A** part : {&row_shift, &row_sum, &row_term}) *part = take(tiling.rows);
        return used;
    }
};

// What the tasks of a head add to: grad_k / ln 2 and grad_v without the local term, (keys, dim) each.
template <class A>
struct Sums {
    A *grad_k, *grad_v;
    double* grad_alpha;
};

template <class T>
struct BackwardTask {
    using A = Accumulator<T>;
    static constexpr int L = kLanes<A>;
    using V = Vec<A>;

    const ContextAggregationBackward& params;
    const Tiling<A>& tiling;
    Scratch<A> scratch;
    Sums<A> sums;
    int64_t batch, head;

    void run(int64_t begin, int64_t end) {
        const int depth = params.shape.head_dim;
        const int64_t tokens = params.shape.tokens;
        const Tokens &k = params.k, &v = params.v;
        const T* key = k.head<const T>(batch, head);
        pack_keys(key, k.token_stride, tokens, depth, scratch.packed_keys);
        pack_keys(v.head<const T>(batch, head), v.token_stride, tokens, depth, scratch.packed_values);
        pack_rows(key, k.token_stride, tokens, depth, A(1), scratch.keys, static_cast<int>(tiling.dim));
        for (int64_t i = 0; i < tiling.keys * tiling.dim; ++i) sums.grad_k[i] = sums.grad_v[i] = 0;
        *sums.grad_alpha = 0;
        for (int64_t row = begin; row < end; row += tiling.rows) {
            add_block(row, end - row < tiling.rows ? end - row : tiling.rows);
        }
    }

    void add_block(int64_t begin, int64_t rows) {
        const int64_t groups = ceil_div(rows, kRows);
        load_block(begin, rows, groups * kRows);
        for (int64_t v = 0; v < tiling.vectors; v += kTileVectors) {
            const int64_t vectors = tiling.vectors - v < kTileVectors ? tiling.vectors - v : kTileVectors;
            for (int64_t group = 0; group < groups; ++group) compute_tile(v, vectors, group * kRows);
        }
        // The sums are 1 but for the rounding of logsumexp, which would otherwise be an error of all
        // probabilities.
        for (int64_t row = 0; row < groups * kRows; ++row) scratch.row_term[row] /= scratch.row_sum[row];
        for (int64_t row = 0; row < rows; ++row) *sums.grad_alpha += scratch.row_term[row];
        for (int64_t v = 0; v < tiling.vectors; v += kTileVectors) {
            const int64_t vectors = tiling.vectors - v < kTileVectors ? tiling.vectors - v : kTileVectors;
            add_gradients(v, vectors, begin, rows, groups);
        }
        const Tokens& grad_q = params.grad_q;
        unpack_rows(scratch.grad_q, static_cast<int>(tiling.dim), rows, params.shape.head_dim,
                    static_cast<A>(params.shape.scale),
                    grad_q.head<T>(batch, head) + begin * grad_q.token_stride, grad_q.token_stride);
    }

    // Rows that do not exist, up to a multiple of kRows, are computed as zeros and then left out of every
    // sum.
    void load_block(int64_t begin, int64_t rows, int64_t padded_rows) {
        const ContextAggregationShape& shape = params.shape;
        const Tokens &q = params.q, &grad_out = params.grad_out;
        const int padded = static_cast<int>(tiling.dim);
        pack_rows(q.head<const T>(batch, head) + begin * q.token_stride, q.token_stride, rows, shape.head_dim,
                  static_cast<A>(shape.scale), scratch.q, padded);
        pack_rows(grad_out.head<const T>(batch, head) + begin * grad_out.token_stride, grad_out.token_stride,
                  rows, shape.head_dim, A(1), scratch.grad_out, padded);
        for (int64_t i = rows * padded; i < padded_rows * padded; ++i) scratch.q[i] = scratch.grad_out[i] = 0;
        for (int64_t i = 0; i < padded_rows * padded; ++i) scratch.grad_q[i] = 0;
        const A* logsumexp =
            static_cast<const A*>(params.logsumexp) + (batch * shape.heads + head) * shape.tokens + begin;
        for (int64_t row = 0; row < padded_rows; ++row) {
            scratch.row_shift[row] = row < rows ? logsumexp[row] : 0;
            scratch.row_sum[row] = scratch.row_term[row] = 0;
        }
    }

    // Probabilities but for a common factor of their row, their gradients, and the parts of the row's sums
    // that they make, for kRows rows and a tile of keys.
    void compute_tile(int64_t first_vector, int64_t vectors, int64_t row) {
        const int64_t dim = tiling.dim, panel = first_vector * params.shape.head_dim * L;
        const int depth = params.shape.head_dim;
        A* scores = scratch.scores + (first_vector * tiling.rows + row) * L;
        A* grad_scores = scratch.grad_scores + (first_vector * tiling.rows + row) * L;
        compute_scores(scratch.q + row * dim, dim, scratch.packed_keys + panel, depth, vectors, scores,
                       tiling.rows);
        compute_scores(scratch.grad_out + row * dim, dim, scratch.packed_values + panel, depth, vectors,
                       grad_scores, tiling.rows);
        const int64_t last_keys = params.shape.tokens - (first_vector + vectors - 1) * L;
        for (int r = 0; r < kRows; ++r) {
            A* last = scores + ((vectors - 1) * tiling.rows + r) * L;
            A* last_grad = grad_scores + ((vectors - 1) * tiling.rows + r) * L;
            store(last, keep_first(load<V>(last), last_keys, -__builtin_inf()));
            store(last_grad, keep_first(load<V>(last_grad), last_keys, 0));
            V sum = {}, term = {};
            for (int64_t v = 0; v < vectors; ++v) {
                A* place = scores + (v * tiling.rows + r) * L;
                A* grad_place = grad_scores + (v * tiling.rows + r) * L;
                const V weight = exp_nonpositive<V>(min(V{}, load<V>(place) - scratch.row_shift[row + r]));
                store(place, weight);
                sum += weight;
                term += weight * load<V>(grad_place);
            }
            scratch.row_sum[row + r] += reduce_add(sum);
            scratch.row_term[row + r] += reduce_add(term);
        }
    }

    // Turns a tile's probabilities and gradients into the full affinity and its gradient before the softmax,
    // and adds their products with the rows of the block to the gradients of q, k and v.
    void add_gradients(int64_t first_vector, int64_t vectors, int64_t begin, int64_t rows, int64_t groups) {
        const int64_t dim = tiling.dim, first = first_vector * L;
        const int64_t left = params.shape.tokens - first, keys = left < vectors * L ? left : vectors * L;
        A* scores = scratch.scores + first * tiling.rows;
        A* grad_scores = scratch.grad_scores + first * tiling.rows;
        const A alpha = static_cast<const A*>(params.alpha)[head];
        for (int64_t group = 0; group < groups; ++group) {
            for (int64_t row = group * kRows; row < (group + 1) * kRows; ++row) {
                const A factor = alpha / scratch.row_sum[row];
                for (int64_t v = 0; v < vectors; ++v) {
                    A* place = scores + (v * tiling.rows + row) * L;
                    A* grad_place = grad_scores + (v * tiling.rows + row) * L;
                    const V weight = load<V>(place) * factor;
                    store(grad_place, weight * (load<V>(grad_place) - scratch.row_term[row]));
                    store(place, weight);
                }
            }
            const int64_t offset = group * kRows;
            add_product(grad_scores + offset * L, tiling.rows, scratch.keys + first * dim, keys, dim,
                        scratch.grad_q + offset * dim);
        }
        if (params.affinity) add_affinity(scores, begin, rows, first, keys);
        add_transposed_product(grad_scores, tiling.rows, rows, vectors, scratch.q, dim,
                               sums.grad_k + first * dim);
        add_transposed_product(scores, tiling.rows, rows, vectors, scratch.grad_out, dim,
                               sums.grad_v + first * dim);
    }

    void add_affinity(A* scores, int64_t begin, int64_t rows, int64_t first, int64_t keys) {
        const int64_t tokens = params.shape.tokens;
        const A* affinity = static_cast<const A*>(params.affinity) + (head * tokens + begin) * tokens + first;
        for (int64_t row = 0; row < rows; ++row) {
            for (int64_t key = 0; key < keys; key += L) {
                A* place = scores + key * tiling.rows + row * L;
                const int count = keys - key < L ? static_cast<int>(keys - key) : L;
                store(place, load<V>(place) + load_first<V>(affinity + row * tokens + key, count));
            }
        }
    }

    // Writes grad_k and grad_v from complete sums; window_weight (taps, dim) is flipped, or null.
    void epilogue(const A* window_weight) {
        const ContextAggregationShape& shape = params.shape;
        const Tokens &grad_k = params.grad_k, &grad_v = params.grad_v, &grad_out = params.grad_out;
        const int padded = static_cast<int>(tiling.dim);
        // The packed q carries the scale.
        unpack_rows(sums.grad_k, padded, shape.tokens, shape.head_dim, A(1), grad_k.head<T>(batch, head),
                    grad_k.token_stride);
        T* target = grad_v.head<T>(batch, head);
        if (!window_weight) {
            return unpack_rows(sums.grad_v, padded, shape.tokens, shape.head_dim, A(1), target,
                               grad_v.token_stride);
        }
        const Window<T> window{grad_out.head<const T>(batch, head),
                               shape.width * grad_out.token_stride,
                               grad_out.token_stride,
                               shape.height,
                               shape.width,
                               shape.head_dim,
                               shape.kernel_height,
                               shape.kernel_width,
                               window_weight,
                               tiling.dim,
                               nullptr};
        window_pixels(window, 0, shape.tokens, sums.grad_v, tiling.dim, target, grad_v.token_stride);
    }
};

template <class T>
void backward(const ContextAggregationBackward& params, int threads) {
    using A = Accumulator<T>;
    const ContextAggregationShape& shape = params.shape;
    const Tiling<A> tiling(shape, threads);
    const int64_t shares = tiling.tasks_per_head, pairs = shape.batch * shape.heads, tasks = pairs * shares;
    const int taps = shape.kernel_height * shape.kernel_width;

    // One pair of sums per thread, unless several tasks share a head: then one per task.
    const int64_t sums_count = 2 * tiling.keys * tiling.dim, sums_slots = shares > 1 ? tasks : threads;
    const int64_t weight_count = params.local_weight ? shape.heads * taps * tiling.dim : 0;
    const int64_t scratch_count = Scratch<A>{}.assign(nullptr, tiling);
    const int64_t elements = sums_slots * sums_count + weight_count + threads * scratch_count;
    A* all_sums = static_cast<A*>(workspace(elements * sizeof(A) + tasks * sizeof(double)));
    A* window_weight = all_sums + sums_slots * sums_count;
    A* all_scratch = window_weight + weight_count;
    double* grad_alpha = reinterpret_cast<double*>(all_scratch + threads * scratch_count);

    if (params.local_weight) {
        parallel_for(threads, shape.heads, [&](int64_t head, int) {
            pack_window_weight(static_cast<const A*>(params.local_weight) + head * shape.head_dim * taps,
                               shape.head_dim, taps, true, window_weight + head * taps * tiling.dim,
                               tiling.dim);
        });
    }
    const auto make_task = [&](int64_t pair, int64_t index, int thread) {
        A* sums = all_sums + (shares > 1 ? index : thread) * sums_count;
        BackwardTask<T> task{params,
                             tiling,
                             {},
                             {sums, sums + sums_count / 2, grad_alpha + index},
                             pair / shape.heads,
                             pair % shape.heads};
        task.scratch.assign(all_scratch + thread * scratch_count, tiling);
        return task;
    };
    const auto weight_of = [&](int64_t head) -> const A* {
        return params.local_weight ? window_weight + head * taps * tiling.dim : nullptr;
    };
    parallel_for(threads, tasks, [&](int64_t index, int thread) {
        BackwardTask<T> task = make_task(index / shares, index, thread);
        const int64_t begin = index % shares * tiling.queries, left = shape.tokens - begin;
        task.run(begin, begin + (left < tiling.queries ? left : tiling.queries));
        if (shares == 1) task.epilogue(weight_of(task.head));
    });
    if (shares > 1) {
        parallel_for(threads, pairs, [&](int64_t pair, int thread) {
            BackwardTask<T> task = make_task(pair, pair * shares, thread);
            A* total = task.sums.grad_k;
            for (int64_t share = 1; share < shares; ++share) {
                for (int64_t i = 0; i < sums_count; ++i) total[i] += total[share * sums_count + i];
            }
            task.epilogue(weight_of(task.head));
        });
    }
    for (int64_t head = 0; head < shape.heads; ++head) {
        double total = 0;
        for (int64_t batch = 0; batch < shape.batch; ++batch) {
            const double* shared = grad_alpha + (batch * shape.heads + head) * shares;
            for (int64_t share = 0; share < shares; ++share) total += shared[share];
        }
        static_cast<A*>(params.grad_alpha)[head] = static_cast<A>(total);
    }
}

}  // namespace

void context_aggregation_backward(const ContextAggregationBackward& params, DType dtype, int threads) {
    switch (dtype) {
        case DType::float32:
            return backward<float>(params, threads);
        case DType::float64:
            return backward<double>(params, threads);
        case DType::bfloat16:
            return backward<BFloat16>(params, threads);
        case DType::float16:
            return backward<Half>(params, threads);
    }
}

}  // namespace ck::CK_ISA
