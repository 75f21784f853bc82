# SPDX-License-Identifier: MIT
"""`projection`: a linear layer over channels with what follows it in a block, the scaled residual, in the same pass.

`projection_with_moments` is the same with the statistics that a norm of its output needs, and
`projection_with_statistics` with sums in their place.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ..common.tensors import converted
from ..common.tokens import as_tokens, zeros_for_bias
from ..dispatch import autocast
from ..dispatch.backend import choose
from ..statistics import square_sum
from .autograd import projection_forward, projection_forward_with_moments
from .backends import COMPILED, why_not
from .inputs import ProjectionArguments
from .reference import projection_reference, projection_with_moments_reference
from .validation import validate


def projection(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    residual: Tensor | None = None,
    sample_scale: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """A linear layer over the channels (a 1×1 convolution, channels last) and the residual connection around it.

        y[b] = sample_scale[b] · (x[b] weightᵀ + bias)  (+ residual[b])

    Sums run in float32 (float64 for float64), and y is rounded once. Gradients for x, weight, bias and residual, to any
    order.

    Args:
        x: (B, …, C), channels last; float32, bfloat16, float16 or float64.
        weight: (C_out, C), as in `nn.Linear`; any floating dtype, used in that of `x`.
        bias: (C_out,) or None; any floating dtype, used in the accumulation dtype.
        residual: (B, …, C_out), added; any floating dtype, used in that of `x`.
        sample_scale: (B,), a factor of each sample's branch: stochastic depth's mask. Without gradient.
        backend: "triton", "cpu", "reference", or None for the fastest that serves.

    Returns:
        (B, …, C_out), contiguous, dtype of `x` (of autocast, when that is on).

    Raises:
        ValueError: a shape or device does not fit.
        TypeError: an argument is not a floating-point tensor.
        RuntimeError: the backend asked for cannot serve this call; the message says why.
    """
    return _project(
        x, weight, bias, residual, sample_scale, backend, projection_forward, projection_reference,
    )[0]  # fmt: skip


def projection_with_moments(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    residual: Tensor | None = None,
    sample_scale: Tensor | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`projection` and, from the same pass over memory, what a BatchNorm of its output needs.

        channel_sum[c] = Σ y[…, c]        channel_m2[c] = Σ (y[…, c] − mean[c])²

    of y as returned, after its rounding, over all tokens; see `local_aggregation_with_moments` for the mean and
    variance made of them.

    Args:
        x, weight, bias, residual, sample_scale, backend: as for `projection`.

    Returns:
        y: (B, …, C_out), contiguous: the same bits as `projection`.
        channel_sum, channel_m2: (C_out,), float32 (float64 for float64); 0 without tokens.
        All three are differentiable.

    Raises:
        ValueError, TypeError, RuntimeError: as `projection`.
    """
    return _project(
        x, weight, bias, residual, sample_scale, backend,
        projection_forward_with_moments, projection_with_moments_reference,
    )  # fmt: skip


def projection_with_statistics(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    residual: Tensor | None = None,
    sample_scale: Tensor | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`projection_with_moments` with the square sum in place of channel_m2.

        channel_sum[c] = Σ y[…, c]        channel_square_sum[c] = Σ y[…, c]²

    A variance made of these loses accuracy where the mean is large: see `local_aggregation_with_statistics`.

    Args:
        x, weight, bias, residual, sample_scale, backend: as for `projection`.

    Returns:
        y: (B, …, C_out), contiguous: the same bits as `projection`.
        channel_sum, channel_square_sum: (C_out,), float32 (float64 for float64); 0 without tokens.
        All three are differentiable.

    Raises:
        ValueError, TypeError, RuntimeError: as `projection`.
    """
    y, channel_sum, channel_m2 = projection_with_moments(
        x, weight, bias, residual=residual, sample_scale=sample_scale, backend=backend
    )
    return y, channel_sum, square_sum(channel_sum, channel_m2, y[..., 0].numel())


def _project(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    sample_scale: Tensor | None,
    backend: str | None,
    operator: Callable,
    reference: Callable,
) -> tuple[Tensor, ...]:
    """Validate, choose, and call `operator(backend, inputs)` or `reference(…)`; their results as a tuple."""
    validate(x, weight, bias, residual, sample_scale)
    if autocast.is_active(x):
        device_type = x.device.type
        with torch.autocast(device_type, enabled=False):
            x = autocast.cast(x, device_type)
            return _project(x, weight, bias, residual, sample_scale, backend, operator, reference)
    chosen = choose("projection", backend, why_not, (x, weight, bias, residual, sample_scale), compiled=COMPILED)
    weight, residual = converted(weight, x.dtype), converted(residual, x.dtype)
    if chosen == "reference":
        results = reference(x, weight, bias, residual, sample_scale)
        return results if isinstance(results, tuple) else (results,)
    bias = zeros_for_bias(bias, x, weight.shape[0])
    sample_scale = None if sample_scale is None else sample_scale.to(bias.dtype)
    residual = None if residual is None else as_tokens(residual)
    results = operator(chosen, ProjectionArguments(as_tokens(x), weight, bias, residual, sample_scale))
    out, *statistics = results if isinstance(results, tuple) else (results,)
    return out.view(*x.shape[:-1], weight.shape[0]), *statistics
