# SPDX-License-Identifier: MIT
"""Networks, registered with timm: `timm.create_model("container_light")`."""

from . import column_variants, container_variants  # noqa: F401 - timm learns their names
from .checkpoint import load_checkpoint
from .column import ColumnContainer
from .container import Container
from .network import Network

__all__ = ["ColumnContainer", "Container", "Network", "load_checkpoint"]
