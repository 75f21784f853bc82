# SPDX-License-Identifier: MIT
"""What each backend needs to serve context aggregation."""

from torch import Tensor

from ..backend import why_not_here

# Beyond it a head no longer fits the kernels' on-chip tiles.
MAX_HEAD_DIM = 256


def why_not(name: str, v: Tensor, dynamic: bool) -> str | None:
    """None when backend `name` can serve values `v` (B, N, M, D), with or without the dynamic term, else the reason."""
    if name != "reference" and dynamic and v.shape[-1] > MAX_HEAD_DIM:
        return f"it takes head_dim up to {MAX_HEAD_DIM}, got {v.shape[-1]}"
    return why_not_here(name, v)
