# SPDX-License-Identifier: MIT
from .api import local_aggregation

__all__ = ["local_aggregation"]
