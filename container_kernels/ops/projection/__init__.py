# SPDX-License-Identifier: MIT
from .api import projection, projection_with_moments, projection_with_statistics

__all__ = ["projection", "projection_with_moments", "projection_with_statistics"]
