# SPDX-License-Identifier: MIT
"""Backends of the folding of norms, and what each needs to serve it."""

from torch import Tensor

from ..dispatch.backend import why_not_among

# Beside "reference", which is many operations on small tensors: on a GPU, that many launches.
COMPILED = ("triton",)


def why_not(name: str, weight: Tensor) -> str | None:
    """None when backend `name` can serve a layer with this weight, else the reason."""
    return why_not_among(COMPILED, "fold_norm", name, weight)
