# SPDX-License-Identifier: MIT
"""The definition of the projection in plain PyTorch: any dtype, differentiable any number of times."""

import torch.nn.functional as F
from torch import Tensor

from ..common.tensors import converted, definition_dtype
from ..common.tokens import scaled_samples
from ..statistics import sums_by_channel


def projection_reference(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, sample_scale: Tensor | None
) -> Tensor:
    """y = sample_scale · (x weightᵀ + bias)  (+ residual)."""
    dtype = definition_dtype(x.dtype)
    bias = converted(bias, dtype)
    y = scaled_samples(F.linear(converted(x, dtype), converted(weight, dtype), bias), sample_scale)
    return converted(y if residual is None else y + converted(residual, dtype), x.dtype)


def projection_with_moments_reference(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, sample_scale: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """y as above, rounded to the dtype of x; of this y: Σ y and Σ (y − mean)² by channel, accumulation dtype."""
    out = projection_reference(x, weight, bias, residual, sample_scale)
    return out, *sums_by_channel(out)
