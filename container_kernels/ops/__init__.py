"""The operations: each folder is one op, its definition first, then what serves it."""

from .backend import usable_backends, use_backend
from .context_aggregation import context_aggregation
from .local_aggregation import local_aggregation

__all__ = ["context_aggregation", "local_aggregation", "usable_backends", "use_backend"]
