# SPDX-License-Identifier: MIT
from .definition import square_sum, sums_by_channel
from .gradient import gradient_through_statistics

__all__ = ["gradient_through_statistics", "square_sum", "sums_by_channel"]
