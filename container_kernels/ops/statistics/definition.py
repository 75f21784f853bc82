# SPDX-License-Identifier: MIT
"""The statistics by channel in plain PyTorch: differentiable any number of times."""

import torch
from torch import Tensor

from ..common.tensors import accumulation_dtype, converted


def sums_by_channel(out: Tensor) -> tuple[Tensor, Tensor]:
    """Σ out and M2 = Σ (out − mean)² of out (…, C) by channel: (C,) each, accumulation dtype; 0 of nothing."""
    rows = converted(out, accumulation_dtype(out.dtype)).flatten(0, -2)
    channel_sum, count = rows.sum(0), max(1, rows.shape[0])
    rows = rows - channel_sum / count
    # The mean as rounded is none to subtract where it is large: what is left of it goes now.
    return channel_sum, (rows - rows.sum(0) / count).square().sum(0)


def square_sum(channel_sum: Tensor, channel_m2: Tensor, count: int) -> Tensor:
    """Σ y² (C,) of `count` values with this sum and M2; infinite where the sum is, though M2 is then NaN."""
    total = channel_m2 + channel_sum * (channel_sum / max(1, count))
    return torch.where(channel_sum.isinf(), torch.inf, total)
