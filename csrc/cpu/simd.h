// SPDX-License-Identifier: MIT
// Vectors of the instruction set that a kernel is compiled for, in GCC's vector extension.
//
// Everything here lives in the namespace of the instruction set (CK_ISA): the linker keeps one copy of an
// inline function, and must not take the AVX-512 one for a processor without it. For the same reason kernel
// sources use no function templates of the standard library.
#pragma once

#include <cstdint>
#include <type_traits>

#include "common/types.h"

#define CK_INLINE inline __attribute__((always_inline))

namespace ck::CK_ISA {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
constexpr int kVectorRegisters = 32;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
constexpr int kVectorRegisters = 16;
#else
constexpr int kVectorBytes = 16;
constexpr int kVectorRegisters = 16;
#endif

template <class A>
constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(A));

template <class E, int L>
struct VectorOf {
    typedef E type __attribute__((vector_size(sizeof(E) * L)));
};
// L lanes of element type E; a full register by default.
template <class E, int L = kLanes<E>>
using Vec = typename VectorOf<E, L>::type;

template <class V>
using Element = std::remove_cvref_t<decltype(V{}[0])>;
template <class V>
constexpr int kLanesOf = static_cast<int>(sizeof(V) / sizeof(Element<V>));

// The integer vectors with the same number of lanes.
template <class V>
using Bits = Vec<std::conditional_t<sizeof(Element<V>) == 8, uint64_t, uint32_t>, kLanesOf<V>>;
template <class V>
using ShortBits = Vec<uint16_t, kLanesOf<V>>;

// A number as a type, to pass as an argument.
template <int Value>
struct Constant {
    static constexpr int value = Value;
};

// 0 … L - 1 as template arguments, for the indices of a shuffle.
template <int... Lane>
struct LaneIndices {};
template <int L, int... Lane>
struct LaneIndicesUpTo : LaneIndicesUpTo<L - 1, L - 1, Lane...> {};
template <int... Lane>
struct LaneIndicesUpTo<0, Lane...> {
    using type = LaneIndices<Lane...>;
};
template <int L>
using MakeLaneIndices = typename LaneIndicesUpTo<L>::type;

template <class To, class From>
CK_INLINE To bit_cast(From value) {
    static_assert(sizeof(To) == sizeof(From));
    To result;
    __builtin_memcpy(&result, &value, sizeof(To));
    return result;
}

template <class V>
CK_INLINE V load_bits(const void* source) {
    V value;
    __builtin_memcpy(&value, source, sizeof(V));
    return value;
}
template <class V>
CK_INLINE void store_bits(void* target, V value) {
    __builtin_memcpy(target, &value, sizeof(V));
}

// x - 0 and not x + 0, which would turn -0 into +0.
template <class V>
CK_INLINE V broadcast(Element<V> value) {
    return value - V{};
}

// The larger of two; the second operand where they do not compare (NaN).
template <class V>
CK_INLINE V max(V a, V b) {
    return a > b ? a : b;
}
// The smaller of two; the second operand where they do not compare.
template <class V>
CK_INLINE V min(V a, V b) {
    return a < b ? a : b;
}

template <class V, int... Lane>
CK_INLINE V lane_numbers(LaneIndices<Lane...>) {
    return V{static_cast<Element<V>>(Lane)...};
}
// The first `count` lanes of `value`, and `rest` in the others.
template <class V>
CK_INLINE V keep_first(V value, int64_t count, Element<V> rest) {
    const V lanes = lane_numbers<V>(MakeLaneIndices<kLanesOf<V>>{});
    return lanes < static_cast<Element<V>>(count) ? value : broadcast<V>(rest);
}

// {a, b} side by side, and of those the lanes `Lane`.
template <int... Lane, class V>
CK_INLINE auto shuffle(V a, V b) {
#if __has_builtin(__builtin_shufflevector)
    return __builtin_shufflevector(a, b, Lane...);
#else  // gcc 11, which makes one permutation of it
    constexpr int L = kLanesOf<V>;
    return Vec<Element<V>, sizeof...(Lane)>{(Lane < L ? a[Lane % L] : b[Lane % L])...};
#endif
}

template <class V, int... Lane>
CK_INLINE auto low_half(V value, LaneIndices<Lane...>) {
    return shuffle<Lane...>(value, value);
}
template <class V, int... Lane>
CK_INLINE auto high_half(V value, LaneIndices<Lane...>) {
    return shuffle<(Lane + static_cast<int>(sizeof...(Lane)))...>(value, value);
}
template <class V, class Combine>
CK_INLINE Element<V> reduce(V value, Combine combine) {
    if constexpr (kLanesOf<V> == 1) {
        return value[0];
    } else {
        using Indices = MakeLaneIndices<kLanesOf<V> / 2>;
        return reduce(combine(low_half(value, Indices{}), high_half(value, Indices{})), combine);
    }
}
template <class V>
CK_INLINE Element<V> reduce_max(V value) {
    return reduce(value, [](auto a, auto b) __attribute__((always_inline)) { return max(a, b); });
}
template <class V>
CK_INLINE Element<V> reduce_add(V value) {
    return reduce(value, [](auto a, auto b) __attribute__((always_inline)) { return a + b; });
}

}  // namespace ck::CK_ISA
