# SPDX-License-Identifier: MIT
"""Ops that work on each pixel alone see any (B, …, C) tensor as B samples of T tokens."""

from torch import Tensor

from .tensors import accumulation_dtype, converted


def as_tokens(x: Tensor) -> Tensor:
    """(B, …, C) as contiguous (B, T, C): a view, unless the strides need a copy."""
    return (x.unsqueeze(1) if x.ndim == 2 else x.flatten(1, -2)).contiguous()


def scaled_samples(branch: Tensor, sample_scale: Tensor | None) -> Tensor:
    """sample_scale[b] · branch[b] of a (B, …, C) branch, in its dtype; the branch itself without a scale."""
    if sample_scale is None:
        return branch
    # A factor that was rounded to the branch's dtype would be wrong in the same direction for the whole sample.
    factors = sample_scale.to(accumulation_dtype(branch.dtype)).view(-1, *[1] * (branch.ndim - 1))
    return converted(branch * factors, branch.dtype)


def zeros_for_bias(bias: Tensor | None, like: Tensor, channels: int) -> Tensor:
    """The (C,) bias in the accumulation dtype of `like`; zeros for None, so that kernels always have one."""
    dtype = accumulation_dtype(like.dtype)
    return like.new_zeros(channels, dtype=dtype) if bias is None else converted(bias, dtype)
