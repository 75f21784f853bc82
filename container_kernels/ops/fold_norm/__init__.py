# SPDX-License-Identifier: MIT
from .api import fold_norm, track_moments
from .moments import Moments

__all__ = ["Moments", "fold_norm", "track_moments"]
