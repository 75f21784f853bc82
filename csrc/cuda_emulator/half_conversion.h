// SPDX-License-Identifier: MIT
// Conversions of the 16-bit types, one number at a time, rounded to nearest even.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "cuda/device_types.h"

namespace ck {

inline float to_float(BFloat16 value) {
    return std::bit_cast<float>(static_cast<uint32_t>(value.bits) << 16);
}

inline float to_float(Half value) {
    const int exponent = value.bits >> 10 & 31, mantissa = value.bits & 1023;
    float magnitude;
    if (exponent == 31) {
        magnitude = mantissa ? NAN : INFINITY;
    } else {
        magnitude = exponent ? std::ldexp(static_cast<float>(1024 + mantissa), exponent - 25)
                             : std::ldexp(static_cast<float>(mantissa), -24);
    }
    return value.bits & 0x8000 ? -magnitude : magnitude;
}

namespace emulator {

inline uint16_t bfloat16_bits(float value) {
    const uint32_t bits = std::bit_cast<uint32_t>(value);
    if (value != value)
        return static_cast<uint16_t>(bits >> 16 | 0x40);  // rounding could carry it to infinity
    return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline uint16_t half_bits(float value) {
    const uint32_t bits = std::bit_cast<uint32_t>(value), sign = bits >> 16 & 0x8000,
                   magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000) return static_cast<uint16_t>(sign | 0x7e00);
    if (magnitude >= 0x477ff000)
        return static_cast<uint16_t>(sign | 0x7c00);  // 65520 and above round to infinity
    if (magnitude < 0x38800000) {  // subnormal: the multiple of 2^-24, which nearbyint rounds to even
        return static_cast<uint16_t>(
            sign | static_cast<uint32_t>(std::nearbyint(std::bit_cast<float>(magnitude) * 0x1p24f)));
    }
    const uint32_t rounded = magnitude + 0xfff + (magnitude >> 13 & 1);
    return static_cast<uint16_t>(sign | (rounded - (112u << 23)) >> 13);
}

}  // namespace emulator

// Two elements of 16 bits in one register; the first is in the low half.
template <class T>
Float2 unpack(uint32_t pair) {
    return {to_float(T{static_cast<uint16_t>(pair)}), to_float(T{static_cast<uint16_t>(pair >> 16)})};
}
template <class T>
uint32_t pack(float first, float second) {
    if constexpr (kIsBFloat16<T>) {
        return emulator::bfloat16_bits(first) | static_cast<uint32_t>(emulator::bfloat16_bits(second)) << 16;
    } else {
        return emulator::half_bits(first) | static_cast<uint32_t>(emulator::half_bits(second)) << 16;
    }
}

}  // namespace ck
