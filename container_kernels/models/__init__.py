# SPDX-License-Identifier: MIT
"""Networks, registered with timm: `timm.create_model("container_light")`."""

from . import container_variants, isotropic_variants  # noqa: F401 - timm learns their names
from .base import Network
from .checkpoint import load_checkpoint
from .container import Container
from .isotropic import IsotropicContainer

# The name before version 0.1.0.
ColumnContainer = IsotropicContainer

__all__ = ["ColumnContainer", "Container", "IsotropicContainer", "Network", "load_checkpoint"]
