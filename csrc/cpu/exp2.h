// SPDX-License-Identifier: MIT
// 2^x of vectors.
#pragma once

#include "cpu/simd.h"

namespace ck::CK_ISA {

constexpr double kLog2E = 1.4426950408889634074;

template <class A>
struct Exp2;

// Coefficients of r^1 … r^n of polynomials for 2^r, |r| <= 1/2, by the Remez algorithm for the relative
// error: 3.9e-9 here and 1.8e-17 for double, both well below half a unit in the last place.
template <>
struct Exp2<float> {
    static constexpr float coefficients[] = {0.69314722539501109f,   0.24022651084117294f,
                                             0.055502973141993248f,  0.0096180307825051538f,
                                             0.0013410000966100157f, 0.00015469731977475548f};
    static constexpr float round_to_integer = 0x1.8p23f;
    static constexpr int mantissa_bits = 23, bias = 127;
    static constexpr float smallest = -126;
};
template <>
struct Exp2<double> {
    static constexpr double coefficients[] = {
        0.69314718055994569675,   0.24022650695910098007,   0.055504108664790394552,
        0.0096181291076070023796, 0.0013333558153439964747, 0.0001540353044157213033,
        1.5252727385193868197e-5, 1.3215442675329822143e-6, 1.0180647659234138888e-7,
        7.0725704128144235096e-9, 4.078071929588336665e-10};
    static constexpr double round_to_integer = 0x1.8p52;
    static constexpr int mantissa_bits = 52, bias = 1023;
    static constexpr double smallest = -1022;
};

// 2^(x · factor) for products <= 0 (but for rounding), which is all that softmax asks for. Below the smallest
// normal number the result is 0: it would be that small a part of a sum of at least 1. NaN stays NaN.
template <class V>
CK_INLINE V exp2_nonpositive(V x, Element<V> factor) {
    using C = Exp2<Element<V>>;
    using B = Bits<V>;
    constexpr int degree = sizeof(C::coefficients) / sizeof(C::coefficients[0]);
    // The sum has the integer nearest to the product in its low bits.
    const V shifted = x * factor + C::round_to_integer;
    const V r = x * factor - (shifted - C::round_to_integer);
    V series = broadcast<V>(C::coefficients[degree - 1]);
#pragma GCC unroll 16
    for (int i = degree - 2; i >= 0; --i) series = series * r + C::coefficients[i];
    series = series * r + 1;
    const V power = bit_cast<V>((bit_cast<B>(shifted) + C::bias) << C::mantissa_bits);
    return x * factor < C::smallest ? V{} : series * power;
}

// e^x, likewise. The factor costs nothing where there are fused multiply-adds.
template <class V>
CK_INLINE V exp_nonpositive(V x) {
    return exp2_nonpositive(x, static_cast<Element<V>>(kLog2E));
}

}  // namespace ck::CK_ISA
