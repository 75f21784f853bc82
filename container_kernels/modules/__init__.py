# SPDX-License-Identifier: MIT
"""Layers: `ContextAggregation`, `LocalAggregation`, `ContainerBlock` made of them, `MultiScaleDeformableAttention`."""

from .block import ContainerBlock
from .context_aggregation import ContextAggregation
from .deformable_attention import MultiScaleDeformableAttention
from .dense_affinity import resize_affinity
from .local_aggregation import LocalAggregation

__all__ = [
    "ContainerBlock",
    "ContextAggregation",
    "LocalAggregation",
    "MultiScaleDeformableAttention",
    "resize_affinity",
]
