// SPDX-License-Identifier: MIT
// The element types of tensors, and the type their kernels accumulate in.
#pragma once

#include <cstdint>

namespace ck {

// The codes that Python passes; keep in step with container_kernels/_extension.py.
enum class DType : int { float32 = 0, float64 = 1, bfloat16 = 2, float16 = 3 };

// Storage only: arithmetic happens after conversion to float.
struct BFloat16 {
    uint16_t bits;
};
struct Half {
    uint16_t bits;
};

template <class T>
struct AccumulatorOf {
    using type = float;
};
template <>
struct AccumulatorOf<double> {
    using type = double;
};
template <class T>
using Accumulator = typename AccumulatorOf<T>::type;

template <class T>
constexpr bool kIsBFloat16 = false;
template <>
constexpr bool kIsBFloat16<BFloat16> = true;

constexpr int64_t ceil_div(int64_t value, int64_t divisor) { return (value + divisor - 1) / divisor; }
constexpr int64_t round_up(int64_t value, int64_t multiple) { return ceil_div(value, multiple) * multiple; }

}  // namespace ck
