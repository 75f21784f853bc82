# SPDX-License-Identifier: MIT
"""Backends of deformable attention, and what each needs to serve it."""

from torch import Tensor

from ..dispatch.backend import why_not_here

# Beside "reference".
COMPILED = ("cuda", "triton", "cpu")
# A program on a GPU has all channels of a head.
MAX_HEAD_DIM = {"cuda": 256, "triton": 256}
# Levels are a parameter of the CUDA kernels, of fixed size (csrc/deformable_attention/cuda/launch.h).
MAX_LEVELS = {"cuda": 16}


def why_not(name: str, value: Tensor, levels: int) -> str | None:
    """None when backend `name` can serve `value` (B, S, M, D) of so many levels, else the reason."""
    reason = why_not_here(name, value)
    most = MAX_HEAD_DIM.get(name)
    if reason is None and most is not None and value.shape[-1] > most:
        reason = f"it takes head_dim up to {most}, got {value.shape[-1]}"
    most = MAX_LEVELS.get(name)
    if reason is None and most is not None and levels > most:
        reason = f"it takes up to {most} levels, got {levels}"
    return reason
