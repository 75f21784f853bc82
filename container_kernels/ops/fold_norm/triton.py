# SPDX-License-Identifier: MIT
"""Folding in Triton: one launch forward, one backward, one for the running statistics.

The tensors are small (a layer's weights); what counts is the number of launches.
"""

import triton
import triton.language as tl
from torch import Tensor

from ..common.triton_primitives import device_of, rounded

# Rows and channels of a tile. Forward, a program walks along its rows; backward, down its channels.
ROWS, CHANNELS = 8, 128
GRAD_ROWS, GRAD_CHANNELS = 64, 16
TRACKED = 256


@triton.jit
def load_moments(first_ptr, second_ptr, channels, mask, count, FROM_SUMS: tl.constexpr):
    """Mean and biased variance of these channels."""
    mean = tl.load(first_ptr + channels, mask=mask, other=0.0)
    # Not 0 where there is no channel: with eps = 0 its inverse deviation would make NaN of the sum over channels.
    variance = tl.load(second_ptr + channels, mask=mask, other=1.0)
    if FROM_SUMS:
        mean = mean / count
        variance = variance / count
    return mean, variance


@triton.jit
def forward_kernel(
    weight_ptr, bias_ptr, first_ptr, second_ptr, gamma_ptr, beta_ptr, folded_ptr, shift_ptr,
    num_rows, num_channels, count, eps,
    FROM_SUMS: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row_mask = rows < num_rows
    shift = tl.zeros([ROWS, CHANNELS], tl.float32)
    for start in range(0, num_channels, CHANNELS):
        channels = start + tl.arange(0, CHANNELS)
        channel_mask = channels < num_channels
        mean, variance = load_moments(first_ptr, second_ptr, channels, channel_mask, count, FROM_SUMS)
        gamma = tl.load(gamma_ptr + channels, mask=channel_mask, other=0.0)
        beta = tl.load(beta_ptr + channels, mask=channel_mask, other=0.0)
        places = rows[:, None] * num_channels + channels[None, :]
        mask = row_mask[:, None] & channel_mask[None, :]
        weight = tl.load(weight_ptr + places, mask=mask, other=0.0).to(tl.float32)
        scale = gamma * tl.rsqrt(variance + eps)
        folded = rounded(weight * scale[None, :], folded_ptr.dtype.element_ty)
        tl.store(folded_ptr + places, folded, mask=mask)
        shift += weight * beta[None, :] - folded.to(tl.float32) * mean[None, :]
    bias = tl.load(bias_ptr + rows, mask=row_mask, other=0.0)
    tl.store(shift_ptr + rows, bias + tl.sum(shift, 1), mask=row_mask)


@triton.jit
def backward_kernel(
    grad_folded_ptr, grad_shift_ptr, weight_ptr, first_ptr, second_ptr, gamma_ptr, beta_ptr,
    grad_weight_ptr, grad_first_ptr, grad_second_ptr, grad_gamma_ptr, grad_beta_ptr,
    num_rows, num_channels, count, eps,
    FOLDED: tl.constexpr, FROM_SUMS: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """With E = grad_folded − grad_shift meanᵀ, all that reaches W', and s = gamma / √(variance + eps):

    grad_W = E s + grad_shift betaᵀ, grad_s = Σ E W, grad_beta = Σ grad_shift W, grad_mean = −Σ grad_shift W' over rows.
    """
    channels = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    channel_mask = channels < num_channels
    mean, variance = load_moments(first_ptr, second_ptr, channels, channel_mask, count, FROM_SUMS)
    gamma = tl.load(gamma_ptr + channels, mask=channel_mask, other=0.0)
    beta = tl.load(beta_ptr + channels, mask=channel_mask, other=0.0)
    inverse = tl.rsqrt(variance + eps)
    scale = gamma * inverse
    grad_scale = tl.zeros([ROWS, CHANNELS], tl.float32)
    grad_beta = tl.zeros([ROWS, CHANNELS], tl.float32)
    grad_mean = tl.zeros([ROWS, CHANNELS], tl.float32)
    for start in range(0, num_rows, ROWS):
        rows = start + tl.arange(0, ROWS)
        row_mask = rows < num_rows
        places = rows[:, None] * num_channels + channels[None, :]
        mask = row_mask[:, None] & channel_mask[None, :]
        weight = tl.load(weight_ptr + places, mask=mask, other=0.0).to(tl.float32)
        grad_shift = tl.load(grad_shift_ptr + rows, mask=row_mask, other=0.0)[:, None]
        grad_folded = tl.load(grad_folded_ptr + places, mask=mask, other=0.0).to(tl.float32)
        grad_folded -= grad_shift * mean[None, :]
        grad_weight = grad_folded * scale[None, :] + grad_shift * beta[None, :]
        tl.store(grad_weight_ptr + places, rounded(grad_weight, grad_weight_ptr.dtype.element_ty), mask=mask)
        grad_scale += grad_folded * weight
        grad_beta += grad_shift * weight
        grad_mean -= grad_shift * rounded(weight * scale[None, :], FOLDED).to(tl.float32)
    grad_scale_sum = tl.sum(grad_scale, 0)
    grad_first = tl.sum(grad_mean, 0)
    grad_second = -0.5 * grad_scale_sum * scale * inverse * inverse
    if FROM_SUMS:
        grad_first = grad_first / count
        grad_second = grad_second / count
    tl.store(grad_first_ptr + channels, grad_first, mask=channel_mask)
    tl.store(grad_second_ptr + channels, grad_second, mask=channel_mask)
    tl.store(grad_gamma_ptr + channels, grad_scale_sum * inverse, mask=channel_mask)
    tl.store(grad_beta_ptr + channels, tl.sum(grad_beta, 0), mask=channel_mask)


@triton.jit
def move(running_ptr, moment, momentum, mask):
    running = tl.load(running_ptr, mask=mask, other=0.0).to(tl.float32)
    running += momentum * (moment - running)
    tl.store(running_ptr, rounded(running, running_ptr.dtype.element_ty), mask=mask)


@triton.jit
def track_kernel(
    running_mean_ptr, running_var_ptr, num_batches_ptr, first_ptr, second_ptr,
    num_channels, count, momentum,
    CUMULATIVE: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """One program, because only one may count the batch."""
    if num_batches_ptr is not None:
        batches = tl.load(num_batches_ptr) + 1
        tl.store(num_batches_ptr, batches)
        if CUMULATIVE:
            momentum = 1.0 / batches.to(tl.float32)
    for start in range(0, num_channels, CHANNELS):
        channels = start + tl.arange(0, CHANNELS)
        mask = channels < num_channels
        mean, variance = load_moments(first_ptr, second_ptr, channels, mask, count, True)
        move(running_mean_ptr + channels, mean, momentum, mask)
        move(running_var_ptr + channels, variance * (count / (count - 1.0)), momentum, mask)


def forward(
    weight: Tensor, bias: Tensor, first: Tensor, second: Tensor, count: int, gamma: Tensor, beta: Tensor, eps: float,
    *, folded: Tensor, shift: Tensor,
) -> None:  # fmt: skip
    """Write W' to `folded` and b' to `shift`; arguments as in `schema`."""
    rows, channels = weight.shape
    with device_of(weight):
        forward_kernel[(triton.cdiv(rows, ROWS),)](
            weight, bias, first, second, gamma, beta, folded, shift, rows, channels, float(count), eps,
            FROM_SUMS=count > 0, ROWS=ROWS, CHANNELS=CHANNELS,
        )  # fmt: skip


def backward(
    grad_folded: Tensor, grad_shift: Tensor, weight: Tensor, first: Tensor, second: Tensor, count: int,
    gamma: Tensor, beta: Tensor, eps: float,
    *, grad_weight: Tensor, grad_first: Tensor, grad_second: Tensor, grad_gamma: Tensor, grad_beta: Tensor,
) -> None:  # fmt: skip
    """Write the gradients of weight and of the vectors by channel."""
    rows, channels = weight.shape
    with device_of(weight):
        backward_kernel[(triton.cdiv(channels, GRAD_CHANNELS),)](
            grad_folded, grad_shift, weight, first, second, gamma, beta,
            grad_weight, grad_first, grad_second, grad_gamma, grad_beta, rows, channels, float(count), eps,
            FOLDED=getattr(tl, str(grad_folded.dtype).removeprefix("torch.")), FROM_SUMS=count > 0,
            ROWS=GRAD_ROWS, CHANNELS=GRAD_CHANNELS,
        )  # fmt: skip


def track(
    running_mean: Tensor, running_var: Tensor, num_batches: Tensor | None, first: Tensor, second: Tensor, count: int,
    momentum: float | None,
) -> None:  # fmt: skip
    """Update running statistics and the count of batches in place."""
    cumulative = momentum is None
    with device_of(first):
        track_kernel[(1,)](
            running_mean, running_var, num_batches, first, second, first.numel(), float(count),
            0.0 if cumulative else momentum, CUMULATIVE=cumulative, CHANNELS=TRACKED,
        )  # fmt: skip
