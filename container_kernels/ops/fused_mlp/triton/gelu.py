# SPDX-License-Identifier: MIT
"""GELU and its derivative, h·Φ(h) and Φ(h) + h·φ(h); for 16-bit results Φ comes from the hardware's tanh.

With 64 channels a multiprocessor has about nine instructions per hidden unit before GELU, not the tensor cores, sets
the time. erf takes some twenty, Φ(h) = ½ + ½ tanh(h (a + b h²)) takes five. a and b have the smallest error (root of
mean square, of g and of the derivative, over h of deviation 1 and 2) that the instruction's own error allows.

tanh.approx is off by up to 2⁻¹¹ of its result, everywhere. Its factor is therefore a little more than ½: far from 0 the
sum is then surely beyond [0, 1], and the clamp, which is free on a multiply-add, makes Φ exactly 0 and 1. The argument
grows with h without bound, so no h is too large.
"""

import triton
import triton.language as tl

from ...common.triton_primitives import INTERPRETED

LINEAR = tl.constexpr(0.79852)
CUBIC = tl.constexpr(0.03499)
FACTOR = tl.constexpr(0.50025)
# float32 everywhere and the interpreter in every dtype keep erf.
EXACT = INTERPRETED


@triton.jit
def hardware_tanh(x):
    """tanh(x) to 2⁻¹¹ of itself, in one instruction."""
    return tl.inline_asm_elementwise("tanh.approx.f32 $0, $1;", "=f,f", [x], tl.float32, is_pure=True, pack=1)


@triton.jit
def fast_normal_cdf(h, square):
    """Φ(h), square = h²; the instruction's error included, off by at most 6e-4, which makes 2e-3 of g = h·Φ(h).

    0 below -4.3 and 1 above 4.3 at the latest.
    """
    return tl.clamp(hardware_tanh(h * (square * CUBIC + LINEAR)) * FACTOR + 0.5, 0.0, 1.0)


@triton.jit
def normal_cdf(h, square, dtype: tl.constexpr):
    """Φ(h), square = h², for results in `dtype`."""
    if dtype == tl.float32 or EXACT:
        return 0.5 + 0.5 * tl.erf(h * 0.7071067811865476)
    else:
        return fast_normal_cdf(h, square)


@triton.jit
def gelu(h, dtype: tl.constexpr):
    """gelu(h) in float32, as accurate as `normal_cdf`."""
    return h * normal_cdf(h, h * h, dtype)


@triton.jit
def gelu_and_derivative(h, dtype: tl.constexpr):
    """gelu(h) and gelu'(h) in float32, as accurate as `normal_cdf`."""
    square = h * h
    cdf = normal_cdf(h, square, dtype)
    # exp(-h²/2) / √(2π) as a power of two.
    density = tl.exp2(square * -0.7213475204444817 - 1.3257480647361595)
    return h * cdf, cdf + h * density
