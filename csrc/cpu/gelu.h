// SPDX-License-Identifier: MIT
// The exact GELU, x · Φ(x) with the distribution function Φ of the normal distribution, and its derivative.
#pragma once

#include "cpu/exp2.h"

namespace ck::CK_ISA {

template <class A>
struct NormalDistribution;

// Φ(x) - 1/2 = x · p(s) with s = 2 (x / bound)² - 1 and |x| < bound; beyond it is ±1/2. In s, which stays
// within ±1, the powers of this polynomial lose no digits to each other. Coefficients of s^0 … s^n: for float
// minimax for x² |p - exact|, the error of x · Φ(x); for double from the Chebyshev series.
template <>
struct NormalDistribution<float> {
    static constexpr float bound = 5.5f;
    static constexpr float coefficients[] = {
        0.12855193f,    -0.0641723275f,   0.0477373898f,  -0.0387933776f,   0.0320755094f,  -0.0260413326f,
        0.0203204118f,  -0.0150343282f,   0.0104092546f,  -0.00672865612f,  0.0042188419f,  -0.0025441933f,
        0.00121381227f, -0.000441758835f, 0.00031774395f, -0.000260598201f, 8.07610195e-05f};
};
template <>
struct NormalDistribution<double> {
    static constexpr double bound = 8.25;
    static constexpr double coefficients[] = {
        0.085709912406257461,   -0.042854948073175899,   0.032141141886766374,   -0.026783892592737501,
        0.023434237156488606,   -0.021085134093960927,   0.019311933306486195,   -0.017893358310335407,
        0.016691750843960257,   -0.015606993850632945,   0.014558751810345923,   -0.013482598484482554,
        0.012333255067585498,   -0.011089795490591545,   0.0097587752272329884,  -0.0083731515651946842,
        0.0069848153853757587,  -0.0056503825413873983,  0.0044224596191402089,  -0.0033517614099912961,
        0.0024669329285950499,  -0.0017454733952229242,  0.0011687701087411023,  -0.0007760754896969758,
        0.00054183248497463,    -0.00033164653854272739, 0.00013854767989996064, -8.4853876054476785e-5,
        0.00010916744003990955, -5.6113628319929918e-5,  -1.6831667002356276e-5, 6.6114553301541555e-6,
        2.2262695559386519e-5,  -1.0035123471042789e-5,  -4.8200325388270028e-6, 2.0319063578308237e-6,
        1.2761558385092078e-6,  -5.387955757918041e-7};
};

// 1 - Φ(x) for x >= 0. NaN gives any number: what x is multiplied with.
template <class V>
CK_INLINE V upper_tail(V x) {
    using E = Element<V>;
    using N = NormalDistribution<E>;
    constexpr int degree = sizeof(N::coefficients) / sizeof(E) - 1;
    const V s = x * x * (2 / (N::bound * N::bound)) - 1;
    V series = broadcast<V>(N::coefficients[degree]);
#pragma GCC unroll 64
    for (int i = degree - 1; i >= 0; --i) series = series * s + N::coefficients[i];
    return x < N::bound ? static_cast<E>(0.5) - x * series : V{};
}

template <class V>
CK_INLINE V magnitude(V x) {
    return x < 0 ? -x : x;
}

// x Φ(x) as max(x, 0) - |x| (1 - Φ(|x|)): the tail is small where x is large, so its rounding weighs little.
// Off by 5e-7 at most on [-12, 12], for double by 2e-15.
template <class V>
CK_INLINE V gelu(V x) {
    constexpr Element<V> bound = NormalDistribution<Element<V>>::bound;
    const V distance = magnitude(x);
    // The bound for what is beyond it, so that infinity is not multiplied with the tail 0.
    const V factor = distance > bound ? broadcast<V>(bound) : distance;
    return max(x, V{}) - factor * upper_tail(distance);
}

// d/dx (x Φ(x)) = Φ(x) + x φ(x), with the density φ(x) = 2^(-x² log2(e) / 2) / √(2π).
template <class V>
CK_INLINE V gelu_derivative(V x) {
    using E = Element<V>;
    constexpr E exponent = static_cast<E>(-kLog2E / 2), factor = static_cast<E>(0.39894228040143267794);
    const V tail = upper_tail(magnitude(x));
    const V distribution = x > 0 ? 1 - tail : tail;
    return distribution + x * (factor * exp2_nonpositive(x * x, exponent));
}

}  // namespace ck::CK_ISA
