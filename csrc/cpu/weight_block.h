// SPDX-License-Identifier: MIT
// Blocks of a weight matrix in the accumulation type: where they are if they have it, else converted.
#pragma once

#include "cpu/pack.h"

namespace ck::CK_ISA {

template <class A>
struct WeightBlock {
    const A* data;
    int64_t stride;
};

// Numbers of scratch that weight_block needs for so many rows and columns.
template <class T>
int64_t weight_block_size(int64_t rows, int64_t columns) {
    using A = Accumulator<T>;
    return std::is_same_v<T, A> ? 0 : rows * round_up(columns, kLanes<A>);
}

template <class T>
WeightBlock<Accumulator<T>> weight_block(const T* weight, int64_t row_stride, int64_t rows, int columns,
                                         Accumulator<T>* scratch) {
    using A = Accumulator<T>;
    if constexpr (std::is_same_v<T, A>) {
        return {weight, row_stride};
    } else {
        const int padded = static_cast<int>(round_up(columns, kLanes<A>));
        pack_rows(weight, row_stride, rows, columns, A{1}, scratch, padded);
        return {scratch, padded};
    }
}

}  // namespace ck::CK_ISA
