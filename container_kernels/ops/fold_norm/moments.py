# SPDX-License-Identifier: MIT
"""Moments of a batch norm's input."""

from typing import NamedTuple

from torch import Tensor


class Moments(NamedTuple):
    """Of each channel (C,), accumulation dtype: sum and M2, Σ (x − mean)², of `count` values.

    With a count of 0 they are the mean and the biased variance themselves. The count is a tensor where it is the sum
    over a group of processes.
    """

    first: Tensor
    second: Tensor
    count: int | Tensor = 0

    def mean_and_variance(self) -> tuple[Tensor, Tensor]:
        if not isinstance(self.count, Tensor) and self.count == 0:
            return self.first, self.second
        return self.first / self.count, self.second / self.count
