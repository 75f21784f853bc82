# SPDX-License-Identifier: MIT
from .api import fused_mlp

__all__ = ["fused_mlp"]
