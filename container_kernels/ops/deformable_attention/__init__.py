# SPDX-License-Identifier: MIT
from .api import deformable_attention
from .offsets import deformable_attention_from_offsets

__all__ = ["deformable_attention", "deformable_attention_from_offsets"]
