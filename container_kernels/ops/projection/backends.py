# SPDX-License-Identifier: MIT
"""Backends of the projection, and what each needs to serve it."""

from torch import Tensor

from ..dispatch.backend import why_not_among

# Beside "reference".
COMPILED = ("triton", "cpu")


def why_not(name: str, x: Tensor) -> str | None:
    """None when backend `name` can serve input `x`, else the reason."""
    return why_not_among(COMPILED, "projection", name, x)
