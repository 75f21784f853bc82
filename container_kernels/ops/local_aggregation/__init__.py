# SPDX-License-Identifier: MIT
from .api import local_aggregation, local_aggregation_with_moments, local_aggregation_with_statistics

__all__ = ["local_aggregation", "local_aggregation_with_moments", "local_aggregation_with_statistics"]
