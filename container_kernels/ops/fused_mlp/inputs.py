# SPDX-License-Identifier: MIT
"""One call of the fused MLP: what its operators take and its backends are given."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

FORWARD_ONLY = ("b2",)


class MlpArguments(NamedTuple):
    """sample_scale · (gelu(x w1ᵀ + b1) w2ᵀ + b2) (+ x).

    The fields, in this order, are the parameters of the operators (`schema`). Backward operators lack those of
    `FORWARD_ONLY`, which are None then.

    x: (B, T, C), w1: (hidden, C), w2: (C_out, hidden), of one dtype.
    b1: (hidden,), b2: (C_out,), sample_scale: (B,) or None, in the accumulation dtype.
    """

    x: Tensor
    w1: Tensor
    b1: Tensor
    w2: Tensor
    b2: Tensor
    sample_scale: Tensor | None
    residual: bool

    def readable(self, layout: Callable[[Tensor | None], Tensor | None]) -> "MlpArguments":
        """With the tensors as `layout` gives them to kernels."""
        *tensors, residual = self
        return MlpArguments(*map(layout, tensors), residual)


class MlpGradients(NamedTuple):
    """What a backward pass writes: each has the shape and dtype of the argument; that of b2 is (C_out,)."""

    x: Tensor
    w1: Tensor
    b1: Tensor
    w2: Tensor
    b2: Tensor
