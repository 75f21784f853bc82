# SPDX-License-Identifier: MIT
from .gradient import gradient_through_statistics

__all__ = ["gradient_through_statistics"]
