# SPDX-License-Identifier: MIT
"""`local_aggregation`: the static local affinity alone, a depthwise convolution over channels-last images.

`local_aggregation_with_moments` is the same with the statistics that a norm of its output needs, and
`local_aggregation_with_statistics` with sums in their place.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ..common.tensors import accumulation_dtype
from ..dispatch import autocast
from ..dispatch.backend import choose
from ..statistics import square_sum
from .autograd import local_aggregation_forward, local_aggregation_forward_with_moments
from .backends import COMPILED, why_not
from .reference import local_aggregation_reference, local_aggregation_with_moments_reference
from .validation import validate


def local_aggregation(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    residual: bool = False,
    backend: str | None = None,
) -> Tensor:
    """Aggregate every channel over its kh × kw neighbourhood: a depthwise convolution, channels last.

        y[b,h,w,c] = Σ_{s,t} weight[c,s,t] · x[b, h+s−kh//2, w+t−kw//2, c] + bias[c]  (+ x[b,h,w,c] with residual)

    This is the paper's static local affinity, A[i, j] = w[c, j − i] inside the window and 0 outside, with zero
    padding at the border. Sums run in float32 (float64 for float64).

    Args:
        x: (B, H, W, C), any strides with a contiguous last dimension; float32, bfloat16, float16 or float64. An
            NCHW image in `torch.channels_last` is such a tensor after `.permute(0, 2, 3, 1)`, without a copy.
        weight: (C, kh, kw), kh and kw odd, up to 11 (fastest where both are 3, 5 or 7); any floating dtype.
        bias: (C,) or None.
        residual: add `x` to the result, at no cost.
        backend: "cuda", "triton", "cpu", "reference", or None for the fastest that serves.

    Returns:
        (B, H, W, C), contiguous, dtype of `x` (of autocast, when that is on).

    Raises:
        ValueError: a shape or device does not fit.
        TypeError: an argument is not a floating-point tensor.
        RuntimeError: the backend asked for cannot serve this call; the message says why.
    """
    return _aggregate(x, weight, bias, residual, backend, local_aggregation_forward, local_aggregation_reference)


def local_aggregation_with_moments(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    residual: bool = False,
    backend: str | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`local_aggregation` and, from the same pass over memory, what a BatchNorm of its output needs.

        y = local_aggregation(x, weight, bias, residual=residual)
        channel_sum[c] = Σ_{b,h,w} y[b,h,w,c]        channel_m2[c] = Σ_{b,h,w} (y[b,h,w,c] − mean[c])²

    of y as returned, after its rounding to the dtype of `x`. With n = B·H·W, the mean is channel_sum / n and the
    (biased) variance channel_m2 / n: exact, and not negative, also where |mean| is large beside the deviation.

    Args:
        x, weight, bias, residual, backend: as for `local_aggregation`.

    Returns:
        y: (B, H, W, C), contiguous, dtype of `x` (of autocast, when that is on): the same bits as `local_aggregation`.
        channel_sum, channel_m2: (C,), float32 (float64 for float64); 0 for an image without pixels.
        All three are differentiable.

    Raises:
        ValueError, TypeError, RuntimeError: as `local_aggregation`.
    """
    return _aggregate(
        x, weight, bias, residual, backend,
        local_aggregation_forward_with_moments, local_aggregation_with_moments_reference,
    )  # fmt: skip


def local_aggregation_with_statistics(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    residual: bool = False,
    backend: str | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`local_aggregation_with_moments` with the square sum in place of channel_m2.

        channel_sum[c] = Σ_{b,h,w} y[b,h,w,c]        channel_square_sum[c] = Σ_{b,h,w} y[b,h,w,c]²

    The variance, channel_square_sum / n − mean², is a difference that loses accuracy where |mean| is large beside the
    deviation: log2(1 + mean² / variance) of the sums' 24 bits (53 for float64). It can come out slightly negative.
    channel_m2 / n does neither.

    Args:
        x, weight, bias, residual, backend: as for `local_aggregation`.

    Returns:
        y: (B, H, W, C), contiguous, dtype of `x` (of autocast, when that is on): the same bits as `local_aggregation`.
        channel_sum, channel_square_sum: (C,), float32 (float64 for float64); 0 for an image without pixels.
        All three are differentiable.

    Raises:
        ValueError, TypeError, RuntimeError: as `local_aggregation`.
    """
    y, channel_sum, channel_m2 = local_aggregation_with_moments(x, weight, bias, residual=residual, backend=backend)
    return y, channel_sum, square_sum(channel_sum, channel_m2, y[..., 0].numel())


def _aggregate(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: bool,
    backend: str | None,
    operator: Callable,
    reference: Callable,
):
    """Validate, choose, and call `operator(backend, x, weight, bias)` or `reference(x, weight, bias, residual)`."""
    validate(x, weight, bias)
    if autocast.is_active(x):
        device_type = x.device.type
        with torch.autocast(device_type, enabled=False):
            x = autocast.cast(x, device_type)
            return _aggregate(x, weight, bias, residual, backend, operator, reference)
    chosen = choose("local_aggregation", backend, why_not, (x, weight, bias), compiled=COMPILED)
    if chosen == "reference":
        return reference(x, weight, bias, residual)
    dtype = accumulation_dtype(x.dtype)
    weight = weight.to(dtype)
    if residual:
        weight = weight + _identity_filter(weight)
    return operator(chosen, x, weight, None if bias is None else bias.to(dtype))


def _identity_filter(weight: Tensor) -> Tensor:
    """The kh × kw filter that returns its input: adding it to every filter adds the residual."""
    kh, kw = weight.shape[1:]
    identity = weight.new_zeros(kh, kw)
    identity[kh // 2, kw // 2] = 1
    return identity
