// SPDX-License-Identifier: MIT
// Copies rows of a strided tensor into aligned buffers of the accumulation type, as they are or transposed.
#pragma once

#include "cpu/convert.h"

namespace ck::CK_ISA {

// target[row][0 … padded) = factor * source[row][0 … columns), then zeros; padded is a multiple of the lanes.
template <class A, class T>
void pack_rows(const T* source, int64_t row_stride, int64_t rows, int columns, A factor, A* target,
               int padded) {
    constexpr int L = kLanes<A>;
    for (int64_t row = 0; row < rows; ++row) {
        for (int c = 0; c < padded; c += L) {
            const Vec<A> value = load_first<Vec<A>>(source + row * row_stride + c, columns - c);
            store(target + row * padded + c, value * factor);
        }
    }
}

// target[row][0 … columns) = factor * source[row][0 … columns): the way back.
template <class A, class T>
void unpack_rows(const A* source, int padded, int64_t rows, int columns, A factor, T* target,
                 int64_t row_stride) {
    constexpr int L = kLanes<A>;
    for (int64_t row = 0; row < rows; ++row) {
        for (int c = 0; c < columns; c += L) {
            const Vec<A> value = load<Vec<A>>(source + row * padded + c);
            store_first(target + row * row_stride + c, value * factor, columns - c);
        }
    }
}

// Exchanges lane `Bit` of the index of a row with that of a lane, over all rows: log2(L) of these transpose.
template <int Bit, class V, int... Lane>
CK_INLINE void exchange(V& a, V& b, LaneIndices<Lane...>) {
    constexpr int L = sizeof...(Lane);
    const V low = shuffle<((Lane & Bit) ? L + Lane - Bit : Lane)...>(a, b);
    const V high = shuffle<((Lane & Bit) ? L + Lane : Lane + Bit)...>(a, b);
    a = low;
    b = high;
}

template <int Bit, class V, int L>
CK_INLINE void transpose_step(V (&rows)[L]) {
    if constexpr (Bit < L) {
#pragma GCC unroll 16
        for (int row = 0; row < L; ++row) {
            if ((row & Bit) == 0) exchange<Bit>(rows[row], rows[row + Bit], MakeLaneIndices<L>{});
        }
        transpose_step<Bit * 2>(rows);
    }
}

// target[column][lane] = source[lane][column] for column < columns and one vector of rows; lanes from `rows`
// on repeat the last row. Consecutive columns are `target_stride` apart.
template <class A, class T>
void pack_transposed(const T* source, int64_t row_stride, int64_t rows, int columns, A* target,
                     int64_t target_stride) {
    constexpr int L = kLanes<A>;
    for (int c = 0; c < columns; c += L) {
        const T* from = source + c;
        int64_t stride = row_stride;
        T staged[L * L];
        const int count = columns - c;
        if (count < L) {
            for (int i = 0; i < L * L; ++i)
                staged[i] = i / L < rows && i % L < count ? from[i / L * stride + i % L] : T{};
            from = staged;
            stride = L;
        }
        Vec<A> block[L];
#pragma GCC unroll 16
        for (int row = 0; row < L; ++row)
            block[row] = load<Vec<A>>(from + (row < rows ? row : rows - 1) * stride);
        transpose_step<1>(block);
#pragma GCC unroll 16
        for (int lane = 0; lane < L; ++lane) {
            if (lane < count) store(target + (c + lane) * target_stride, block[lane]);
        }
    }
}

}  // namespace ck::CK_ISA
