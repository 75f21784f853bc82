# SPDX-License-Identifier: MIT
"""The gradient through statistics in Triton: one pass, bound by memory."""

import triton
import triton.language as tl
from torch import Tensor

from ..common.triton_primitives import device_of, rounded

# Channels of a tile, and elements: 8 of each tensor a thread.
MOST_CHANNELS, ELEMENTS = 128, 1024


@triton.jit(do_not_specialize=["num_rows"])
def gradient_kernel(
    out_ptr, grad_out_ptr, sum_ptr, grad_sum_ptr, grad_m2_ptr, total_ptr, num_rows, num_channels,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    channel_blocks = tl.cdiv(num_channels, CHANNELS)
    program = tl.program_id(0)
    channels = program % channel_blocks * CHANNELS + tl.arange(0, CHANNELS)
    rows = (program // channel_blocks).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    exists = channels < num_channels
    mask = (rows < num_rows)[:, None] & exists[None, :]
    places = rows[:, None] * num_channels + channels[None, :]
    mean = tl.load(sum_ptr + channels, mask=exists, other=0.0) / num_rows
    grad_sum = tl.load(grad_sum_ptr + channels, mask=exists, other=0.0)
    grad_m2 = tl.load(grad_m2_ptr + channels, mask=exists, other=0.0)
    out = tl.load(out_ptr + places, mask=mask, other=0.0).to(tl.float32)
    grad_out = tl.load(grad_out_ptr + places, mask=mask, other=0.0).to(tl.float32)
    total = grad_out + (grad_sum[None, :] + 2.0 * (out - mean[None, :]) * grad_m2[None, :])
    tl.store(total_ptr + places, rounded(total, total_ptr.dtype.element_ty), mask=mask)


def gradient(
    out: Tensor, grad_out: Tensor, channel_sum: Tensor, grad_sum: Tensor, grad_m2: Tensor, *, total: Tensor
) -> None:
    """Write grad_out + grad_sum + 2 · (out − mean) · grad_m2 to `total`; (…, C) and (C,), contiguous."""
    num_channels = out.shape[-1]
    num_rows = out.numel() // num_channels
    channels = min(MOST_CHANNELS, triton.next_power_of_2(num_channels))
    rows = ELEMENTS // channels
    with device_of(out):
        gradient_kernel[(triton.cdiv(num_rows, rows) * triton.cdiv(num_channels, channels),)](
            out, grad_out, channel_sum, grad_sum, grad_m2, total, num_rows, num_channels, ROWS=rows, CHANNELS=channels
        )  # fmt: skip
