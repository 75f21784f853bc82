// SPDX-License-Identifier: MIT
// Matrix products whose left operand is read one number at a time, in whatever layout it has, and whose right
// factor and result are panels: up to kNRVectors vectors wide, the accumulators of one row in registers.
#pragma once

#include "cpu/simd.h"

namespace ck::CK_ISA {

// 8 × 3 accumulators, 3 vectors and a factor take 28 of 32 registers; 4 × 3 take all 16.
constexpr int kMR = kVectorRegisters == 32 ? 8 : 4;
constexpr int kNRVectors = 3;
template <class A>
constexpr int kPanelLanes = kNRVectors * kLanes<A>;

// Terms of a sum in registers: as many rows of a panel stay in the first-level cache, and sums of such sums
// lose less than one long sum.
constexpr int64_t kKC = 64;

// Asks for `count` rows of a row-major matrix ahead of their use.
template <class T>
CK_INLINE void prefetch_rows(const T* rows, int64_t stride, int64_t count, int64_t columns) {
    for (int64_t row = 0; row < count; ++row) {
        for (int64_t c = 0; c < columns; c += 64 / sizeof(T)) __builtin_prefetch(rows + row * stride + c);
    }
}

// The left operand: (row, k) is at data[row * stride + k], or at data[k * stride + row] when transposed.
template <bool Transposed, class A>
struct OperandA {
    const A* data;
    int64_t stride;

    CK_INLINE A operator()(int64_t row, int64_t k) const {
        return Transposed ? data[k * stride + row] : data[row * stride + k];
    }
    CK_INLINE OperandA from(int64_t row, int64_t k) const {
        return {data + (Transposed ? k * stride + row : row * stride + k), stride};
    }
    // Asks for rows that are needed next: short runs of many rows are not what the hardware foresees. Of a
    // transposed factor they lie in the same cache lines.
    CK_INLINE void prefetch(int64_t row, int64_t rows, int64_t depth) const {
        if (!Transposed) prefetch_rows(data + row * stride, stride, rows, depth);
    }
};
template <class A>
CK_INLINE OperandA<false, A> by_rows(const A* data, int64_t stride) {
    return {data, stride};
}
template <class A>
CK_INLINE OperandA<true, A> by_columns(const A* data, int64_t stride) {
    return {data, stride};
}

// Rows of vectors, `stride` numbers apart.
template <class A>
struct Panel {
    A* data;
    int64_t stride;

    CK_INLINE Panel from(int64_t row) const { return {data + row * stride, stride}; }
    CK_INLINE Panel from_column(int64_t column) const { return {data + column, stride}; }
};
template <class A>
CK_INLINE Panel<const A> read_only(Panel<A> panel) {
    return {panel.data, panel.stride};
}

// Splits `columns` (or rows) into the fewest near-equal blocks of at most `max`, in whole vectors; at least
// one.
template <class A>
struct Blocks {
    int64_t columns, count;

    explicit Blocks(int64_t columns, int64_t max)
        : columns(columns), count(columns > max ? ceil_div(columns, max) : 1) {}

    // The first column of a block.
    int64_t begin(int64_t block) const {
        const int64_t first = block * ceil_div(columns, kLanes<A>) / count * kLanes<A>;
        return first < columns ? first : columns;
    }
    int size(int64_t block) const { return static_cast<int>(begin(block + 1) - begin(block)); }
    int vectors(int64_t block) const { return static_cast<int>(ceil_div(size(block), kLanes<A>)); }
};
template <class A>
Blocks<A> panels_of(int64_t columns) {
    return Blocks<A>(columns, kPanelLanes<A>);
}

// result = left · right, or added to it, for Rows rows and Vectors vectors.
template <int Rows, int Vectors, bool Transposed, class A>
CK_INLINE void multiply_block(OperandA<Transposed, A> left, Panel<const A> right, int64_t depth, bool add,
                              Panel<A> result) {
    constexpr int L = kLanes<A>;
    using V = Vec<A>;
    V sum[Rows][Vectors] = {};
    for (int64_t k = 0; k < depth; ++k) {
        V factor[Vectors];
#pragma GCC unroll 8
        for (int v = 0; v < Vectors; ++v) factor[v] = load_bits<V>(right.data + k * right.stride + v * L);
#pragma GCC unroll 8
        for (int row = 0; row < Rows; ++row) {
            const V number = broadcast<V>(left(row, k));
#pragma GCC unroll 8
            for (int v = 0; v < Vectors; ++v) sum[row][v] += number * factor[v];
        }
    }
#pragma GCC unroll 8
    for (int row = 0; row < Rows; ++row) {
#pragma GCC unroll 8
        for (int v = 0; v < Vectors; ++v) {
            A* place = result.data + row * result.stride + v * L;
            store_bits(place, add ? load_bits<V>(place) + sum[row][v] : sum[row][v]);
        }
    }
}

template <int Vectors, bool Transposed, class A>
__attribute__((noinline)) void multiply_panel(OperandA<Transposed, A> left, int64_t rows,
                                              Panel<const A> right, int64_t depth, bool add,
                                              Panel<A> result) {
    int64_t row = 0;
    for (; row + kMR <= rows; row += kMR) {
        const int64_t next = row + kMR, left_over = rows - next;
        left.prefetch(next, left_over < kMR ? left_over : kMR, depth);
        multiply_block<kMR, Vectors>(left.from(row, 0), right, depth, add, result.from(row));
    }
    for (; row < rows; ++row) {
        multiply_block<1, Vectors>(left.from(row, 0), right, depth, add, result.from(row));
    }
}

// result = left · right, or added to it, for `rows` rows and `vectors` vectors, at most kNRVectors.
template <bool Transposed, class A>
void multiply(OperandA<Transposed, A> left, int64_t rows, Panel<const A> right, int64_t depth, int vectors,
              bool add, Panel<A> result) {
    const int64_t parts = depth > 0 ? ceil_div(depth, kKC) : 1;
    for (int64_t part = 0; part < parts; ++part) {
        const int64_t begin = part * depth / parts, count = (part + 1) * depth / parts - begin;
        const auto part_left = left.from(0, begin);
        const auto part_right = right.from(begin);
        const bool part_add = add || part > 0;
        switch (vectors) {
            case 0:
                break;
            case 1:
                multiply_panel<1>(part_left, rows, part_right, count, part_add, result);
                break;
            case 2:
                multiply_panel<2>(part_left, rows, part_right, count, part_add, result);
                break;
            case 3:
                static_assert(kNRVectors == 3, "a case for every number of vectors");
                multiply_panel<3>(part_left, rows, part_right, count, part_add, result);
        }
    }
}

}  // namespace ck::CK_ISA
