# SPDX-License-Identifier: MIT
"""Networks, registered with timm: `timm.create_model("container_light")`."""

from .checkpoint import load_checkpoint
from .container import Container

__all__ = ["Container", "load_checkpoint"]
