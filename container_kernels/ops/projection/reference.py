# SPDX-License-Identifier: MIT
"""The definition of the projection in plain PyTorch: any dtype, differentiable any number of times."""

import torch.nn.functional as F
from torch import Tensor

from ..library import accumulation_dtype, converted, definition_dtype
from ..tokens import scaled_samples


def projection_reference(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, sample_scale: Tensor | None
) -> Tensor:
    """y = sample_scale · (x weightᵀ + bias)  (+ residual)."""
    dtype = definition_dtype(x.dtype)
    bias = converted(bias, dtype)
    y = scaled_samples(F.linear(converted(x, dtype), converted(weight, dtype), bias), sample_scale)
    return converted(y if residual is None else y + converted(residual, dtype), x.dtype)


def projection_with_statistics_reference(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, sample_scale: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """y as above, rounded to the dtype of x; of this y: Σ y and Σ y² by channel, accumulation dtype."""
    out = projection_reference(x, weight, bias, residual, sample_scale)
    rows = converted(out, accumulation_dtype(x.dtype)).flatten(0, -2)
    return out, rows.sum(0), rows.square().sum(0)
