# SPDX-License-Identifier: MIT
"""The definition of folding in plain PyTorch: any dtype, differentiable any number of times."""

import torch
from torch import Tensor

from ..common.tensors import converted
from .moments import Moments


def fold_norm_reference(
    weight: Tensor,
    bias: Tensor,
    moments: Moments,
    gamma: Tensor,
    beta: Tensor,
    eps: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """W' = W · gamma / √(variance + eps), rounded to `dtype`; b' = bias + W beta − W' mean."""
    mean, variance = moments.mean_and_variance()
    weight = weight.to(mean.dtype)
    folded = converted(weight * ((variance + eps).rsqrt() * gamma), dtype)
    return folded, bias + torch.mv(weight, beta) - torch.mv(converted(folded, mean.dtype), mean)


def track_moments_reference(
    running_mean: Tensor,
    running_var: Tensor,
    num_batches: Tensor | None,
    moments: Moments,
    momentum: float | None,
) -> None:
    """Move the running statistics to the batch's by `momentum` (None: the average of all batches)."""
    mean, variance = moments.mean_and_variance()
    if num_batches is not None:
        num_batches.add_(1)
    if momentum is None:
        momentum = 0.0 if num_batches is None else 1 / num_batches
    unbiased = variance * (moments.count / (moments.count - 1))
    running_mean.lerp_(mean.to(running_mean.dtype), momentum)
    running_var.lerp_(unbiased.to(running_var.dtype), momentum)
