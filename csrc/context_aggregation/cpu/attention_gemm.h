// SPDX-License-Identifier: MIT
// The small matrix products that softmax attention consists of, with their accumulators in registers.
//
// Scores are stored in vectors of keys: (row, key) is at [key / lanes][row][key % lanes], for row_count rows.
// All other operands are row-major, with `dim` columns that are zero-padded to whole vectors; only the keys
// of multiply_keys are transposed.
#pragma once

#include "cpu/pack.h"

namespace ck::CK_ISA {

// Rows by vectors that a product keeps in registers. With 32 registers, 7 × 3 accumulators; 7 because the
// grids of a 224 × 224 image (7², 14², 28², 56²) are multiples of it. With 16 registers, 6 × 2.
constexpr int kRows = kVectorRegisters == 32 ? 7 : 6;
constexpr int kKeyVectors = kVectorRegisters == 32 ? 3 : 2;
constexpr int kDimVectors = 2;

// Products that add to their output sum up on their own first: sums of the sums of tiles lose less than one
// long sum.
template <class A>
CK_INLINE void add_to(A* place, Vec<A> value) {
    store(place, load<Vec<A>>(place) + value);
}

// scores = q kᵀ for kRows rows of q and Vectors vectors of keys; `keys` is [depth][Vectors][lanes].
template <int Vectors, class A>
CK_INLINE void multiply_keys(const A* q, int64_t q_stride, const A* keys, int depth, A* scores,
                             int64_t row_count) {
    constexpr int L = kLanes<A>;
    using V = Vec<A>;
    V sum[kRows][Vectors] = {};
    for (int d = 0; d < depth; ++d) {
        V key[Vectors];
#pragma GCC unroll 8
        for (int v = 0; v < Vectors; ++v) key[v] = load<V>(keys + (d * Vectors + v) * L);
#pragma GCC unroll 8
        for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 8
            for (int v = 0; v < Vectors; ++v) sum[row][v] += q[row * q_stride + d] * key[v];
        }
    }
#pragma GCC unroll 8
    for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 8
        for (int v = 0; v < Vectors; ++v) store(scores + (v * row_count + row) * L, sum[row][v]);
    }
}

// out += scores · values for kRows rows and Vectors vectors of columns.
template <int Vectors, class A>
CK_INLINE void multiply_values(const A* scores, int64_t row_count, const A* values, int64_t keys, int64_t dim,
                               A* out) {
    constexpr int L = kLanes<A>;
    using V = Vec<A>;
    V sum[kRows][Vectors] = {};
    for (int64_t first = 0; first < keys; first += L) {
        const A* panel = scores + first * row_count;
        const int count = keys - first < L ? static_cast<int>(keys - first) : L;
        for (int key = 0; key < count; ++key) {
            V value[Vectors];
#pragma GCC unroll 8
            for (int v = 0; v < Vectors; ++v) value[v] = load<V>(values + (first + key) * dim + v * L);
#pragma GCC unroll 8
            for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 8
                for (int v = 0; v < Vectors; ++v) sum[row][v] += panel[row * L + key] * value[v];
            }
        }
    }
#pragma GCC unroll 8
    for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 8
        for (int v = 0; v < Vectors; ++v) add_to(out + row * dim + v * L, sum[row][v]);
    }
}

// out += scoresᵀ · x: Keys keys from `scores` (all within one vector) over the rows of x.
template <int Keys, int Vectors, class A>
CK_INLINE void multiply_transposed(const A* scores, int64_t rows, const A* x, int64_t dim, A* out) {
    constexpr int L = kLanes<A>;
    using V = Vec<A>;
    V sum[Keys][Vectors] = {};
    for (int64_t row = 0; row < rows; ++row) {
        V value[Vectors];
#pragma GCC unroll 8
        for (int v = 0; v < Vectors; ++v) value[v] = load<V>(x + row * dim + v * L);
#pragma GCC unroll 8
        for (int key = 0; key < Keys; ++key) {
#pragma GCC unroll 8
            for (int v = 0; v < Vectors; ++v) sum[key][v] += scores[row * L + key] * value[v];
        }
    }
#pragma GCC unroll 8
    for (int key = 0; key < Keys; ++key) {
#pragma GCC unroll 8
        for (int v = 0; v < Vectors; ++v) add_to(out + key * dim + v * L, sum[key][v]);
    }
}

// The panels that multiply_keys reads: [panel][column][kKeyVectors or what is left][lanes]. Returns the
// vectors.
template <class A, class T>
int64_t pack_keys(const T* source, int64_t row_stride, int64_t keys, int depth, A* target) {
    constexpr int L = kLanes<A>;
    const int64_t vectors = ceil_div(keys, L);
    for (int64_t v = 0; v < vectors; ++v) {
        const int64_t panel = v / kKeyVectors * kKeyVectors;
        const int64_t width = vectors - panel < kKeyVectors ? vectors - panel : kKeyVectors;
        pack_transposed(source + v * L * row_stride, row_stride, keys - v * L, depth,
                        target + (panel * depth + v - panel) * L, width * L);
    }
    return vectors;
}

// scores = q kᵀ for kRows rows, over packed keys.
template <class A>
void compute_scores(const A* q, int64_t dim, const A* keys, int depth, int64_t vectors, A* scores,
                    int64_t row_count) {
    constexpr int L = kLanes<A>;
    int64_t v = 0;
    for (; v + kKeyVectors <= vectors; v += kKeyVectors) {
        multiply_keys<kKeyVectors>(q, dim, keys + v * depth * L, depth, scores + v * row_count * L,
                                   row_count);
    }
    keys += v * depth * L;
    scores += v * row_count * L;
    if (vectors - v == 1) multiply_keys<1>(q, dim, keys, depth, scores, row_count);
    if constexpr (kKeyVectors > 2) {
        if (vectors - v == 2) multiply_keys<2>(q, dim, keys, depth, scores, row_count);
    }
}

// out += scores · values for kRows rows.
template <class A>
void add_product(const A* scores, int64_t row_count, const A* values, int64_t keys, int64_t dim, A* out) {
    constexpr int L = kLanes<A>;
    int64_t c = 0;
    for (; c + kDimVectors * L <= dim; c += kDimVectors * L) {
        multiply_values<kDimVectors>(scores, row_count, values + c, keys, dim, out + c);
    }
    if (c < dim) multiply_values<1>(scores, row_count, values + c, keys, dim, out + c);
}

// out += scoresᵀ · x over the first `rows` rows, for `vectors` vectors of keys; out has rows for all their
// lanes.
template <class A>
void add_transposed_product(const A* scores, int64_t row_count, int64_t rows, int64_t vectors, const A* x,
                            int64_t dim, A* out) {
    constexpr int L = kLanes<A>;
    constexpr int most = kVectorRegisters == 32 ? 8 : 4;
    constexpr int keys = L < most ? L : most;
    for (int64_t first = 0; first < vectors * L; first += keys) {
        const A* column = scores + first / L * row_count * L + first % L;
        int64_t c = 0;
        for (; c + kDimVectors * L <= dim; c += kDimVectors * L) {
            multiply_transposed<keys, kDimVectors>(column, rows, x + c, dim, out + first * dim + c);
        }
        if (c < dim) multiply_transposed<keys, 1>(column, rows, x + c, dim, out + first * dim + c);
    }
}

}  // namespace ck::CK_ISA
