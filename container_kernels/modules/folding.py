# SPDX-License-Identifier: MIT
"""A norm before a linear layer, folded into the layer's weights: the normalized tensor is never written.

    norm(x) = (x − mean) · scale + shift
    W norm(x) + b = W' x + b'    with    W' = W · scale,    b' = b + W shift − W' mean

Batch statistics come from the pass that produced x. All of it is ordinary PyTorch on tensors of C channels, so that
autograd has the gradients of a norm: through W' and b' to the statistics, and from there to x.
"""

from typing import NamedTuple

import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d, FrozenBatchNormAct2d
from torch import Tensor, nn

from ..ops.library import accumulation_dtype
from .plain import has_hooks

_BATCH_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm, BatchNormAct2d)
_FROZEN_BUFFERS = {"weight", "bias", "running_mean", "running_var"}


class Statistics(NamedTuple):
    """Sums over all pixels of a batch, by channel (C,), and the number of pixels."""

    channel_sum: Tensor
    channel_square_sum: Tensor
    count: int | Tensor


class Affine(NamedTuple):
    """norm(x) = (x − mean) · scale + shift, by channel (C,), in the accumulation dtype."""

    mean: Tensor
    scale: Tensor
    shift: Tensor

    def fold_into(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """(W', b') for a layer whose input is x instead of norm(x).

        W' is rounded to `dtype`, that of x, and b' is made of W' as rounded, in the accumulation dtype: so the rounding
        weighs as much as the deviation of x and not as its mean, which may be far larger.
        """
        with torch.autocast(weight.device.type, enabled=False):
            weight = weight.to(self.scale.dtype)
            folded = (weight * self.scale).to(dtype)
            shift = torch.mv(weight, self.shift)
            if bias is not None:
                shift = shift + bias
            return folded, shift - torch.mv(folded.to(self.scale.dtype), self.mean)


def can_fold(norm: nn.Module) -> bool:
    """Whether `norm` is of a kind that `affine_of` knows. Others have to be called, and so have norms with hooks."""
    if has_hooks(norm):
        return False
    if type(norm) is BatchNormAct2d or type(norm) is FrozenBatchNormAct2d:
        return isinstance(norm.act, nn.Identity) and isinstance(norm.drop, nn.Identity)
    return type(norm) in _BATCH_NORMS or _is_frozen(norm)


def needs_statistics(norm: nn.Module) -> bool:
    """Whether a norm that can be folded normalizes by the statistics of its batch."""
    return can_fold(norm) and isinstance(norm, _BATCH_NORMS) and (norm.training or norm.running_mean is None)


def is_foldable(norm: nn.Module, statistics: Statistics | None) -> bool:
    """Whether `affine_of(norm, statistics)` can be had: the kind is known, and so are the statistics it needs."""
    return can_fold(norm) and (statistics is not None or not needs_statistics(norm))


def affine_of(norm: nn.Module, statistics: Statistics | None = None) -> Affine:
    """What `norm` does to each channel; the one place that knows the kinds of norms.

    In training this is a call of the norm: running statistics are updated, and a `SyncBatchNorm` sums over its group.

    Args:
        norm: one that `can_fold`.
        statistics: those of its input, where it `needs_statistics`.

    Raises:
        ValueError: in training, a single value per channel.
    """
    if needs_statistics(norm):
        mean, variance, count = _moments(norm, statistics)
        if norm.training and norm.running_mean is not None:
            _track(norm, mean, variance, count)
    else:
        dtype = accumulation_dtype(norm.running_mean.dtype)
        mean, variance = norm.running_mean.to(dtype), norm.running_var.to(dtype)
    # transformers' frozen norms have no eps attribute: theirs is this one.
    scale = (variance + getattr(norm, "eps", 1e-5)).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight
    return Affine(mean, scale, torch.zeros_like(mean) if norm.bias is None else norm.bias.to(mean.dtype))


def _is_frozen(norm: nn.Module) -> bool:
    """The frozen batch norms of torchvision, timm and transformers (one for each of its models): alike but in class."""
    return (
        "FrozenBatchNorm" in type(norm).__name__
        and {name for name, _ in norm.named_buffers(recurse=False)} == _FROZEN_BUFFERS
    )


def _moments(norm: nn.Module, statistics: Statistics) -> tuple[Tensor, Tensor, int | Tensor]:
    """Mean, biased variance and number of values, of the whole group where the norm is synchronized."""
    channel_sum, channel_square_sum, count = statistics
    if type(norm) is nn.SyncBatchNorm and norm.training and dist.is_available() and dist.is_initialized():
        group = norm.process_group or dist.group.WORLD
        packed = torch.cat([channel_sum, channel_square_sum, channel_sum.new_full((1,), count)])
        packed = _SumOverGroup.apply(packed, group)
        channel_sum, channel_square_sum, count = packed.tensor_split([len(channel_sum), -1])
    elif count <= 1 and norm.training:
        raise ValueError(f"x: expected more than 1 value per channel when training, got {count}")
    mean = channel_sum / count
    # A difference that rounding may turn negative.
    return mean, (channel_square_sum / count - mean.square()).clamp(min=0), count


@torch.no_grad()
def _track(norm: nn.Module, mean: Tensor, variance: Tensor, count: int | Tensor) -> None:
    momentum = norm.momentum
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        if momentum is None:  # the average of all batches
            momentum = 1 / norm.num_batches_tracked
    unbiased = variance * (count / (count - 1))
    norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), momentum)
    norm.running_var.lerp_(unbiased.to(norm.running_var.dtype), momentum)


class _SumOverGroup(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, group):
        ctx.group = group
        x = x.clone()
        dist.all_reduce(x, group=group)
        return x

    @staticmethod
    def backward(ctx, grad):
        return _SumOverGroup.apply(grad.contiguous(), ctx.group), None
