# SPDX-License-Identifier: MIT
"""Backends of local aggregation, and what each needs to serve it."""

from torch import Tensor

from ..dispatch.backend import why_not_here

# Beside "reference".
COMPILED = ("cuda", "triton", "cpu")


def why_not(name: str, x: Tensor) -> str | None:
    """None when backend `name` can serve input `x`, else the reason."""
    return why_not_here(name, x)
