# SPDX-License-Identifier: MIT
"""Statistics by channel in Triton: every tile leaves sums about a pivot of its own, one kernel merges them.

A tile's pivot is the mean of some of its values, so its float32 sums are of numbers as small as the deviation; a sum of
squares about 0 would lose the variance where the mean is large. Merging is in float64.

    partial (tiles, 4, C) float32: count, pivot, Σ (y − pivot), Σ (y − pivot)²
"""

import triton
import triton.language as tl
from torch import Tensor

from ..common.triton_primitives import device_of, rounded

# Rows of a tile's part of `partial`.
ROWS = 4
# Parts and channels that the merging kernel has in registers.
PARTS, CHANNELS = 32, 32


@triton.jit
def finite(pivot):
    """The pivot, or 0: one that is infinite would make NaN of infinite sums."""
    return tl.where(tl.abs(pivot) < float("inf"), pivot, 0.0)


@triton.jit
def tile_pivot(row, count, dtype: tl.constexpr):
    """The mean (CHANNELS,) of `count` values, those of a tile's row (LANES, CHANNELS) that exist; the others are 0.

    One value alone could be far from the others, as those at the border of an image are. It is rounded to `dtype`, as
    the values are: differences of 16-bit numbers are then exact.
    """
    return finite(rounded(tl.sum(row, 0) / count, dtype).to(tl.float32))


@triton.jit
def store_partial(partial_ptr, part, channels, num_channels, count, pivot, total, square_total):
    """Leave the sums (CHANNELS,) of tile `part`."""
    mask = channels < num_channels
    place = partial_ptr + tl.cast(part, tl.int64) * 4 * num_channels + channels
    tl.store(place, tl.zeros_like(pivot) + count, mask=mask)
    tl.store(place + num_channels, pivot, mask=mask)
    tl.store(place + 2 * num_channels, total, mask=mask)
    tl.store(place + 3 * num_channels, square_total, mask=mask)


@triton.jit(do_not_specialize=["num_parts"])
def merge_kernel(
    partial_ptr, sum_ptr, m2_ptr, num_parts, num_channels, PARTS: tl.constexpr, CHANNELS: tl.constexpr
):  # fmt: skip
    channels = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    exists = channels < num_channels
    pivot = tl.load(partial_ptr + num_channels + channels, mask=exists, other=0.0).to(tl.float64)
    count = tl.zeros([PARTS, CHANNELS], tl.float64)
    total = tl.zeros([PARTS, CHANNELS], tl.float64)
    square_total = tl.zeros([PARTS, CHANNELS], tl.float64)
    for start in range(0, num_parts, PARTS):
        parts = start + tl.arange(0, PARTS)
        mask = (parts < num_parts)[:, None] & exists[None, :]
        place = partial_ptr + parts.to(tl.int64)[:, None] * 4 * num_channels + channels[None, :]
        part_count = tl.load(place, mask=mask, other=0.0).to(tl.float64)
        shift = tl.load(place + num_channels, mask=mask, other=0.0).to(tl.float64) - pivot[None, :]
        part_total = tl.load(place + 2 * num_channels, mask=mask, other=0.0).to(tl.float64)
        shifted = part_count * shift
        count += part_count
        total += part_total + shifted
        square_total += tl.load(place + 3 * num_channels, mask=mask, other=0.0).to(tl.float64)
        square_total += shift * (2.0 * part_total + shifted)
    count = tl.maximum(tl.sum(count, 0), 1.0)  # where there is no channel, too
    total = tl.sum(total, 0)
    m2 = tl.sum(square_total, 0) - total * total / count
    m2 = tl.where(m2 < 0.0, 0.0, m2)  # by rounding; NaN stays
    tl.store(sum_ptr + channels, (count * pivot + total).to(tl.float32), mask=exists)
    tl.store(m2_ptr + channels, m2.to(tl.float32), mask=exists)


def merge(partial: Tensor, channel_sum: Tensor, channel_m2: Tensor) -> None:
    """Write Σ y and Σ (y − mean)² (C,) of all tiles of `partial`, in a fixed order."""
    num_parts, _, num_channels = partial.shape
    with device_of(partial):
        merge_kernel[(triton.cdiv(num_channels, CHANNELS),)](
            partial, channel_sum, channel_m2, num_parts, num_channels, PARTS=PARTS, CHANNELS=CHANNELS
        )
