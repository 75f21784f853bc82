# SPDX-License-Identifier: MIT
"""Networks that mix convolution and attention, fast: the CONTAINER block, its fused kernels and models.

    from container_kernels import ContainerBlock, ContextAggregation, LocalAggregation   # layers
    from container_kernels import context_aggregation, local_aggregation, fused_mlp      # their operations
    timm.create_model("container_light")                                                 # models, after the import

Paper: Gao, Lu, Li, Mottaghi, Kembhavi, "Container: Context Aggregation Network", NeurIPS 2021, arXiv:2106.01401.
"""

from . import models
from .modules import ContainerBlock, ContextAggregation, LocalAggregation, MultiScaleDeformableAttention
from .ops.context_aggregation import context_aggregation
from .ops.deformable_attention import deformable_attention, deformable_attention_from_offsets
from .ops.dispatch.backend import usable_backends, use_backend
from .ops.fused_mlp import fused_mlp
from .ops.local_aggregation import (
    local_aggregation,
    local_aggregation_with_moments,
    local_aggregation_with_statistics,
)
from .ops.projection import projection, projection_with_moments, projection_with_statistics

__version__ = "0.1.0"

__all__ = [
    "ContainerBlock",
    "ContextAggregation",
    "LocalAggregation",
    "MultiScaleDeformableAttention",
    "context_aggregation",
    "deformable_attention",
    "deformable_attention_from_offsets",
    "fused_mlp",
    "local_aggregation",
    "local_aggregation_with_moments",
    "local_aggregation_with_statistics",
    "models",
    "projection",
    "projection_with_moments",
    "projection_with_statistics",
    "usable_backends",
    "use_backend",
]
