# SPDX-License-Identifier: MIT
"""`fold_norm`: a batch norm before a linear layer becomes part of the layer's weights."""

import torch
from torch import Tensor

from ..common.tokens import zeros_for_bias
from ..dispatch import autocast
from ..dispatch.backend import choose
from ..dispatch.registration import operator_of
from . import autograd  # noqa: F401 - gives the operators their gradients
from .backends import COMPILED, why_not
from .moments import Moments
from .reference import fold_norm_reference, track_moments_reference


def fold_norm(
    weight: Tensor,
    bias: Tensor | None,
    moments: Moments,
    gamma: Tensor | None,
    beta: Tensor | None,
    eps: float,
    dtype: torch.dtype,
    *,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """(W', b') so that W' x + b' = W norm(x) + b for a norm with these moments, scale gamma and shift beta.

        W' = W · gamma / √(variance + eps)        b' = b + W beta − W' mean

    W' is rounded to `dtype`, that of x, and b' is made of W' as rounded, in the accumulation dtype: so the rounding
    weighs as much as the deviation of x and not as its mean, which may be far larger. Differentiable in all tensors: so
    the gradient of a norm reaches x through its moments.

    Args:
        weight: (C_out, C); bias: (C_out,) or None; gamma, beta: (C,) or None for 1 and 0; any floating dtype.
        backend: "triton", "reference", or None for the fastest that serves.

    Returns:
        W' (C_out, C) in `dtype` and b' (C_out,) in the accumulation dtype, contiguous.
    """
    if autocast.is_active(weight):
        with torch.autocast(weight.device.type, enabled=False):
            return fold_norm(weight, bias, moments, gamma, beta, eps, dtype, backend=backend)
    first, second, count = moments
    wide = first.dtype
    bias = zeros_for_bias(bias, first, weight.shape[0])
    gamma = torch.ones_like(first) if gamma is None else gamma.to(wide)
    beta = torch.zeros_like(first) if beta is None else beta.to(wide)
    name = "reference" if isinstance(count, Tensor) else _choose(backend, weight, bias, first, second, gamma, beta)
    if name == "reference":
        return fold_norm_reference(weight, bias, moments, gamma, beta, eps, dtype)
    operator = operator_of("fold_norm_forward", name)
    return operator(weight, bias, first, second, count, gamma, beta, eps, dtype)


@torch.no_grad()
def track_moments(
    running_mean: Tensor,
    running_var: Tensor,
    num_batches: Tensor | None,
    moments: Moments,
    momentum: float | None,
    *,
    backend: str | None = None,
) -> None:
    """Update a norm's running statistics (C,) and its count of batches in place, as `nn.BatchNorm2d` does in training.

        running += momentum · (batch − running), the variance unbiased; momentum None: the average of all batches

    Args:
        moments: sum and M2 of at least 2 values, or of none.
        backend: as for `fold_norm`.
    """
    first, second, count = moments
    if not isinstance(count, Tensor) and count == 0:  # an empty batch is counted, and changes nothing
        if num_batches is not None:
            num_batches.add_(1)
        return
    tensors = (running_mean, running_var, num_batches, first, second)
    name = "reference" if isinstance(count, Tensor) else _choose(backend, *tensors)
    if name == "reference":
        track_moments_reference(running_mean, running_var, num_batches, moments, momentum)
    else:
        operator = operator_of("fold_norm_track", name)
        operator(running_mean, running_var, num_batches, first, second, count, momentum)


def _choose(backend: str | None, *tensors: Tensor | None) -> str:
    return choose("fold_norm", backend, why_not, tensors, compiled=COMPILED)
