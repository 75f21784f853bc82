// SPDX-License-Identifier: MIT
// The exact GELU, x · Φ(x) with the distribution function Φ of the normal distribution, and its derivative.
#pragma once

#include "cpu/exp2.h"

namespace ck::CK_ISA {

template <class A>
struct NormalDistribution;

// Φ(x) - 1/2 = x · p(s) with s = 2 (x / bound)² - 1 and |x| < bound; beyond it is ±1/2. In s, which stays
// within ±1, the powers of this polynomial lose no digits to each other. Coefficients of s^0 … s^n from the
// Chebyshev series; x · Φ(x) is off by 8e-7 at most (near ±5; PyTorch's by 1.2e-6), for double by 2e-15.
template <>
struct NormalDistribution<float> {
    static constexpr float bound = 5.2f;
    static constexpr float coefficients[] = {
        0.135949976f,   -0.06774384f,     0.0500263844f,  -0.0399242961f,   0.0319573807f,
        -0.0247733626f, 0.0181668826f,    -0.0123155941f, 0.00790647407f,   -0.00513660701f,
        0.0028282642f,  -0.000918086967f, 0.00047008771f, -0.000582433835f, 0.000242603131f};
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

// Φ(x). NaN gives any number: what x is multiplied with.
template <class V>
CK_INLINE V normal_distribution(V x) {
    using E = Element<V>;
    using N = NormalDistribution<E>;
    constexpr int degree = sizeof(N::coefficients) / sizeof(E) - 1;
    const V s = x * x * (2 / (N::bound * N::bound)) - 1;
    V series = broadcast<V>(N::coefficients[degree]);
#pragma GCC unroll 64
    for (int i = degree - 1; i >= 0; --i) series = series * s + N::coefficients[i];
    const V inside = x * series + static_cast<E>(0.5);
    const V left = x > -N::bound ? inside : V{};
    return x < N::bound ? left : broadcast<V>(1);
}

// d/dx (x Φ(x)), given Φ(x): the density at x is 2^(-x² log2(e) / 2) / √(2π).
template <class V>
CK_INLINE V gelu_derivative(V x, V distribution) {
    using E = Element<V>;
    constexpr E exponent = static_cast<E>(-kLog2E / 2), factor = static_cast<E>(0.39894228040143267794);
    return distribution + x * (factor * exp2_nonpositive(x * x, exponent));
}

}  // namespace ck::CK_ISA
