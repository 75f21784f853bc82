// SPDX-License-Identifier: MIT
// Loads and stores between tensor elements and vectors of the accumulation type. bfloat16 and float16 are
// rounded to nearest, ties to even; NaN stays NaN.
#pragma once

#include "cpu/simd.h"

#if defined(__F16C__)
#include <immintrin.h>
#endif

namespace ck::CK_ISA {

template <class V>
CK_INLINE V from_bfloat16(ShortBits<V> bits) {
    return bit_cast<V>(__builtin_convertvector(bits, Bits<V>) << 16);
}

template <class V>
CK_INLINE ShortBits<V> to_bfloat16(V value) {
    const Bits<V> bits = bit_cast<Bits<V>>(value);
    const Bits<V> rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    // Rounding would carry some NaNs over to infinity.
    const Bits<V> nan = (bits >> 16) | 0x40;
    return __builtin_convertvector(value == value ? rounded : nan, ShortBits<V>);
}

// The AVX-512 intrinsics without a mask start from an undefined vector, which gcc 12 warns about; a full mask
// costs nothing.
template <class V>
CK_INLINE V from_half(ShortBits<V> bits) {
#if defined(__AVX512F__)
    if constexpr (kLanesOf<V> == 16)
        return bit_cast<V>(_mm512_maskz_cvtph_ps(0xffff, bit_cast<__m256i>(bits)));
#endif
#if defined(__F16C__)
    if constexpr (kLanesOf<V> == 8) return bit_cast<V>(_mm256_cvtph_ps(bit_cast<__m128i>(bits)));
#endif
    using B = Bits<V>;
    const B wide = __builtin_convertvector(bits, B);
    const B sign = (wide & 0x8000) << 16;
    const B magnitude = (wide & 0x7fff) << 13;
    const B normal = magnitude + ((127 - 15) << 23);
    const B special = magnitude + ((255 - 31) << 23);  // infinity and NaN
    // A subnormal half is its mantissa times 2^-24: put it behind the leading one of 2^-14 and subtract that.
    constexpr uint32_t smallest_normal = 113 << 23;
    const V shifted = bit_cast<V>(magnitude + smallest_normal) - bit_cast<V>(B{} + smallest_normal);
    const B finite = magnitude < (1 << 23) ? bit_cast<B>(shifted) : normal;
    return bit_cast<V>((magnitude >= (31 << 23) ? special : finite) | sign);
}

template <class V>
CK_INLINE ShortBits<V> to_half(V value) {
#if defined(__AVX512F__)
    if constexpr (kLanesOf<V> == 16) {
        const __m512 input = bit_cast<__m512>(value);
        return bit_cast<ShortBits<V>>(_mm512_maskz_cvtps_ph(0xffff, input, _MM_FROUND_TO_NEAREST_INT));
    }
#endif
#if defined(__F16C__)
    if constexpr (kLanesOf<V> == 8) {
        return bit_cast<ShortBits<V>>(_mm256_cvtps_ph(bit_cast<__m256>(value), _MM_FROUND_TO_NEAREST_INT));
    }
#endif
    using B = Bits<V>;
    constexpr uint32_t infinity = 255u << 23, overflow = (127 + 16) << 23, smallest_normal = 113 << 23;
    const B bits = bit_cast<B>(value);
    const B sign = bits & 0x80000000u;
    const B magnitude = bits ^ sign;
    const B special = magnitude > infinity ? B{} + 0x7e00 : B{} + 0x7c00;
    // Adding 1/2 lets the adder of the processor round to the 2^-24 of a subnormal half.
    constexpr uint32_t half = 126u << 23;
    const B subnormal = bit_cast<B>(bit_cast<V>(magnitude) + bit_cast<V>(B{} + half)) - half;
    const B odd = (magnitude >> 13) & 1;
    const B normal = (magnitude - ((127 - 15) << 23) + 0xfff + odd) >> 13;
    const B finite = magnitude < smallest_normal ? subnormal : normal;
    const B result = (magnitude >= overflow ? special : finite) | (sign >> 16);
    return __builtin_convertvector(result, ShortBits<V>);
}

// One vector from, or to, consecutive elements at any alignment.
template <class V, class T>
CK_INLINE V load(const T* source) {
    if constexpr (std::is_same_v<T, BFloat16>) {
        return from_bfloat16<V>(load_bits<ShortBits<V>>(source));
    } else if constexpr (std::is_same_v<T, Half>) {
        return from_half<V>(load_bits<ShortBits<V>>(source));
    } else {
        static_assert(std::is_same_v<T, Element<V>>);
        return load_bits<V>(source);
    }
}
template <class V, class T>
CK_INLINE void store(T* target, V value) {
    if constexpr (std::is_same_v<T, BFloat16>) {
        store_bits(target, to_bfloat16(value));
    } else if constexpr (std::is_same_v<T, Half>) {
        store_bits(target, to_half(value));
    } else {
        static_assert(std::is_same_v<T, Element<V>>);
        store_bits(target, value);
    }
}

// What reading back a stored value would give.
template <class T, class V>
CK_INLINE V rounded(V value) {
    if constexpr (std::is_same_v<T, BFloat16>) {
        return from_bfloat16<V>(to_bfloat16(value));
    } else if constexpr (std::is_same_v<T, Half>) {
        return from_half<V>(to_half(value));
    } else {
        return value;
    }
}

// Loads and stores of the first `count` lanes; the others are read as 0, and not written.
template <class V, class T>
CK_INLINE V load_first(const T* source, int count) {
    if (count >= kLanesOf<V>) return load<V>(source);
    T lanes[kLanesOf<V>] = {};
    for (int lane = 0; lane < count; ++lane) lanes[lane] = source[lane];
    return load<V>(lanes);
}
template <class V, class T>
CK_INLINE void store_first(T* target, V value, int count) {
    if (count >= kLanesOf<V>) return store(target, value);
    T lanes[kLanesOf<V>];
    store(lanes, value);
    for (int lane = 0; lane < count; ++lane) target[lane] = lanes[lane];
}

}  // namespace ck::CK_ISA
