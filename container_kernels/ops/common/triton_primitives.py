# SPDX-License-Identifier: MIT
"""Triton helpers that the kernels of several ops use unchanged."""

import contextlib

import torch
import triton
import triton.language as tl

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


def device_of(tensor: torch.Tensor) -> contextlib.AbstractContextManager:
    """Make `tensor`'s GPU current, as Triton launches on the current device; the interpreter needs nothing."""
    return torch.cuda.device_of(tensor) if tensor.is_cuda else contextlib.nullcontext()


def precision(dtype: torch.dtype) -> str:
    """The precision of tl.dot: exact, unless the user lets torch's own float32 products use TF32."""
    return "tf32" if dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"


def tap_major(weight: torch.Tensor) -> torch.Tensor:
    """(C, kh, kw) -> contiguous (kh*kw, C), so that one tap of neighbouring channels is one cache line.

    Read in their own order, 32 channels of a tap lie in 25 lines: weights would cost more than pixels.
    """
    return weight.flatten(1).t().contiguous()


@triton.jit
def rounded(tile, dtype: tl.constexpr):
    """A float32 tile in `dtype`, to nearest even; the interpreter alone would truncate to bfloat16."""
    if INTERPRETED and dtype == tl.bfloat16:
        bits = tile.to(tl.uint32, bitcast=True)
        bits += 0x7FFF + ((bits >> 16) & 1)
        # Without the bits that go: of the subnormal number that they would make of zero it makes another one.
        tile = (bits & 0xFFFF0000).to(tl.float32, bitcast=True)
    return tile.to(dtype)


@triton.jit
def dot(a, b, accumulator, PRECISION: tl.constexpr):
    """a @ b + accumulator in float32; PRECISION matters for float32 operands only."""
    if INTERPRETED:
        # It multiplies bfloat16 by its bits, as integers; and float32 by NumPy's BLAS, which on some processors rounds
        # q·k other than k·q. On a GPU they are one chain, and backward_key.py relies on it, as on any one rounding.
        return tl.dot(a.to(tl.float64), b.to(tl.float64)).to(tl.float32) + accumulator
    return tl.dot(a, b, accumulator, input_precision=PRECISION)
