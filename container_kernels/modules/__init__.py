# SPDX-License-Identifier: MIT
"""Layers: `ContextAggregation`, `LocalAggregation` and the `ContainerBlock` made of them."""

from .block import ContainerBlock
from .context_aggregation import ContextAggregation
from .dense_affinity import resize_affinity
from .local_aggregation import LocalAggregation

__all__ = ["ContainerBlock", "ContextAggregation", "LocalAggregation", "resize_affinity"]
