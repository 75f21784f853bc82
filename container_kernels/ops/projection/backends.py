# SPDX-License-Identifier: MIT
"""Which backends the projection has, and what each needs to serve it."""

from torch import Tensor

from ..backend import why_not_here

# Beside "reference".
COMPILED = ("triton", "cpu")


def why_not(name: str, x: Tensor) -> str | None:
    """None when backend `name` can serve input `x`, else the reason."""
    if name not in ("reference", *COMPILED):
        return f"projection has no {name!r} kernel"
    return why_not_here(name, x)
