# SPDX-License-Identifier: MIT
"""One call of the projection: what its operators take and its backends are given."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

FORWARD_ONLY = ("bias", "residual")


class ProjectionArguments(NamedTuple):
    """sample_scale · (x weightᵀ + bias) (+ residual).

    The fields, in this order, are the parameters of the operators (`schema`). Backward operators lack those of
    `FORWARD_ONLY`, which are None then.

    x: (B, T, C), weight: (C_out, C), residual: (B, T, C_out) or None, of one dtype.
    bias: (C_out,), sample_scale: (B,) or None, in the accumulation dtype.
    """

    x: Tensor
    weight: Tensor
    bias: Tensor
    residual: Tensor | None
    sample_scale: Tensor | None

    def readable(self, layout: Callable[[Tensor | None], Tensor | None]) -> "ProjectionArguments":
        """With the tensors as `layout` gives them to kernels."""
        return ProjectionArguments(*map(layout, self))


class ProjectionGradients(NamedTuple):
    """What a backward pass writes: x (B, T, C), weight (C_out, C), bias (C_out,) in the accumulation dtype."""

    x: Tensor
    weight: Tensor
    bias: Tensor
