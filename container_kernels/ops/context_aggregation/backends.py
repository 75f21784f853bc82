# SPDX-License-Identifier: MIT
"""What each backend needs to serve context aggregation."""

from torch import Tensor

from ..backend import why_not_here

# Beyond it a head no longer fits the kernels' on-chip tiles.
MAX_HEAD_DIM = 256
MAX_HEAD_DIM_CUDA = 128


def why_not(name: str, v: Tensor, dynamic: bool, dense: bool) -> str | None:
    """None when backend `name` can serve values `v` (B, N, M, D), else the reason.

    Args:
        dynamic, dense: whether there are queries and keys, and a dense affinity.
    """
    if name != "reference" and dynamic:
        head_dim = v.shape[-1]
        limit = MAX_HEAD_DIM_CUDA if name == "cuda" else MAX_HEAD_DIM
        if head_dim > limit:
            return f"it takes head_dim up to {limit}, got {head_dim}"
        if name == "cuda":
            if dense:
                return "it has no dense affinity beside the dynamic term"
            if not fits_shared_memory(v.shape[1], head_dim, v.dtype.itemsize):
                return f"a row of {v.shape[1]} tokens of head_dim {head_dim} does not fit shared memory"
    return why_not_here(name, v)


def fits_shared_memory(tokens: int, head_dim: int, itemsize: int) -> bool:
    """Whether the CUDA kernels, forward and backward, can hold a row of keys and values of a head on chip."""
    return tokens <= 256
