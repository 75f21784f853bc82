# SPDX-License-Identifier: MIT
from .api import context_aggregation, packed_context_aggregation

__all__ = ["context_aggregation", "packed_context_aggregation"]
