# SPDX-License-Identifier: MIT
"""A norm before a linear layer, folded into the layer's weights: the normalized tensor is never written.

    norm(x) = (x − mean) · scale + shift
    W norm(x) + b = W' x + b'    with    W' = W · scale,    b' = b + W shift − W' mean

Batch statistics come from the pass that produced x. The gradient of the norm goes the same way back: through W' and b'
to the statistics, and from there, with the gradient of that pass, to its input.
"""

from typing import NamedTuple

import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d, FrozenBatchNormAct2d
from torch import Tensor, nn

from ..ops.common.tensors import accumulation_dtype
from ..ops.fold_norm import Moments, fold_norm, track_moments
from .fusible import why_altered

_BATCH_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm, BatchNormAct2d)
_FROZEN_BUFFERS = {"weight", "bias", "running_mean", "running_var"}


class Affine(NamedTuple):
    """A norm as it stands: norm(x) = (x − mean) · gamma / √(variance + eps) + beta, by channel (C,)."""

    moments: Moments
    gamma: Tensor | None
    beta: Tensor | None
    eps: float

    def fold_into(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """(W', b') for a layer whose input is x, in `dtype`, instead of norm(x)."""
        return fold_norm(weight, bias, self.moments, self.gamma, self.beta, self.eps, dtype)

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """(scale, shift) of norm(x) = x · scale + shift."""
        mean, variance = self.moments.mean_and_variance()
        scale = (variance + self.eps).rsqrt() * (1 if self.gamma is None else self.gamma)
        return scale, (0 if self.beta is None else self.beta) - mean * scale


def why_unknown(norm: nn.Module) -> str | None:
    """None where `norm` is of a kind that `affine_of` knows. Others have to be called, and so have norms with hooks."""
    if type(norm) in (BatchNormAct2d, FrozenBatchNormAct2d):
        if not (isinstance(norm.act, nn.Identity) and isinstance(norm.drop, nn.Identity)):
            return "has an activation"
    elif not (type(norm) in _BATCH_NORMS or _is_frozen(norm)):
        return f"is of class {type(norm).__name__}, no batch norm"
    return why_altered(norm)


def needs_statistics(norm: nn.Module) -> bool:
    """Whether a norm that can be folded normalizes by the statistics of its batch."""
    is_batch_norm = isinstance(norm, _BATCH_NORMS) and (norm.training or norm.running_mean is None)
    return is_batch_norm and why_unknown(norm) is None


def why_not_foldable(norm: nn.Module, has_statistics: bool) -> str | None:
    """None where `affine_of` can be had: the kind is known, and so are the statistics, if the norm needs some."""
    if reason := why_unknown(norm):
        return reason
    if has_statistics or not needs_statistics(norm):
        return None
    return "needs statistics of the batch, which no fused pass before it makes"


def affine_of(norm: nn.Module, statistics: Moments | None = None) -> Affine:
    """Scale and shift of each channel by `norm`; the one place that knows the kinds of norms.

    In training this is a call of the norm: running statistics are updated, and a `SyncBatchNorm` sums over its group.

    Args:
        norm: of a known kind (`why_unknown`).
        statistics: sum and M2 of its input, where it `needs_statistics`.

    Raises:
        ValueError: a batch with a single value per channel.
    """
    if needs_statistics(norm):
        moments = _of_the_group(norm, statistics)
        if norm.training and norm.track_running_stats and norm.running_mean is not None:
            track_moments(norm.running_mean, norm.running_var, norm.num_batches_tracked, moments, norm.momentum)
        if not isinstance(moments.count, Tensor) and moments.count == 0:
            # Of no pixels; any finite moments keep the gradients of parameters at 0.
            moments = moments._replace(count=1)
    else:
        dtype = accumulation_dtype(norm.running_mean.dtype)
        moments = Moments(norm.running_mean.to(dtype), norm.running_var.to(dtype))
    # transformers' frozen norms have no eps attribute: theirs is this one.
    return Affine(moments, norm.weight, norm.bias, getattr(norm, "eps", 1e-5))


def _is_frozen(norm: nn.Module) -> bool:
    """The frozen batch norms of torchvision, timm and transformers (one for each of its models): alike but in class."""
    return (
        "FrozenBatchNorm" in type(norm).__name__
        and {name for name, _ in norm.named_buffers(recurse=False)} == _FROZEN_BUFFERS
    )


def _of_the_group(norm: nn.Module, statistics: Moments) -> Moments:
    """The statistics of all processes' values, where the norm is synchronized; else of this one's."""
    channel_sum, channel_m2, count = statistics
    if type(norm) is nn.SyncBatchNorm and norm.training and dist.is_available() and dist.is_initialized():
        group = norm.process_group or dist.group.WORLD
        if dist.get_world_size(group) == 1:
            return _checked(statistics)
        packed = torch.cat([channel_sum, channel_m2, channel_sum.new_full((1,), count)])
        return _merged(*_GatherOverGroup.apply(packed, group).tensor_split([len(channel_sum), -1], dim=1))
    return _checked(statistics)


def _merged(sums: Tensor, m2s: Tensor, counts: Tensor) -> Moments:
    """The moments of all values from those of parts: (parts, C), (parts, C) and (parts, 1), some parts empty."""
    total, count = sums.sum(0), counts.sum(0)
    # Squares of differences of means: Σx² of all would lose the variance where the mean is large.
    apart = sums / counts.clamp(min=1) - total / count.clamp(min=1)
    return Moments(total, (m2s + counts * apart.square()).sum(0), count)


def _checked(statistics: Moments) -> Moments:
    if statistics.count == 1:
        raise ValueError("x: expected more than 1 value per channel to normalize by, got 1")
    return statistics


class _GatherOverGroup(torch.autograd.Function):
    """x (n,) of every process -> (processes, n)."""

    @staticmethod
    def forward(ctx, x, group):
        ctx.group = group
        gathered = x.new_empty((dist.get_world_size(group), *x.shape))
        dist.all_gather_into_tensor(gathered, x[None], group=group)
        return gathered

    @staticmethod
    def backward(ctx, grad):
        return _SumForEach.apply(grad, ctx.group), None


class _SumForEach(torch.autograd.Function):
    """The gradient of the above: every process has a row for each, whose sum over processes that one gets."""

    @staticmethod
    def forward(ctx, rows, group):
        ctx.group = group
        rows = rows.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(rows, group=group)
        return rows[dist.get_rank(group)].clone()

    @staticmethod
    def backward(ctx, grad):
        return _GatherOverGroup.apply(grad.contiguous(), ctx.group), None
