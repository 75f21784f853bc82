# SPDX-License-Identifier: MIT
"""Backends of context aggregation, and what each needs to serve it."""

import functools

import torch
from torch import Tensor

from ..._extension import DTYPE_CODES
from ..common.cuda_launch import WINDOWS, place_on
from ..dispatch.backend import why_not_here

# Beside "reference".
COMPILED = ("cuda", "triton", "cpu")
# The CUDA kernels' head dimensions; others are filled up to the next of them.
CUDA_HEAD_DIMS = (32, 64, 128)
# Beyond it a head no longer fits the kernels' on-chip tiles.
MAX_HEAD_DIM = {"cpu": 256, "triton": 256, "cuda": CUDA_HEAD_DIMS[-1]}


def why_not(name: str, v: Tensor, dynamic: bool, dense: bool) -> str | None:
    """None when backend `name` can serve values `v` (B, N, M, D), else the reason.

    Args:
        dynamic, dense: whether there are queries and keys, and a dense affinity.
    """
    if name == "reference" or not dynamic:
        return why_not_here(name, v)
    tokens, head_dim = v.shape[1], v.shape[3]
    limit = MAX_HEAD_DIM[name]
    if head_dim > limit:
        return f"it takes head_dim up to {limit}, got {head_dim}"
    if name == "cuda" and dense:
        return "it has no dense affinity beside the dynamic term"
    reason = why_not_here(name, v)
    if reason is None and name == "cuda":
        most = _most_tokens(v.device, v.dtype, min(dim for dim in CUDA_HEAD_DIMS if dim >= head_dim))
        if tokens > most:
            return f"its blocks hold a whole row, up to {most} tokens of head_dim {head_dim} here, got {tokens}"
    return reason


# Plain numbers in, a plain number out, that never changes: compiled code may keep it, and tokens stay symbolic.
@torch.compiler.assume_constant_result
def _most_tokens(device: torch.device, dtype: torch.dtype, head_dim: int) -> int:
    """For how many tokens a block of `device` has the shared memory, forward and backward, whatever the window."""
    return _ask_most_tokens(device, dtype, head_dim)


@functools.cache
def _ask_most_tokens(device: torch.device, dtype: torch.dtype, head_dim: int) -> int:
    module, index, _ = place_on(device)
    limit, code = module.shared_memory_limit(index), DTYPE_CODES[dtype]
    tokens = 0
    while True:
        more = tokens + 16
        sizes = (1, more, 1, head_dim)
        for window in WINDOWS:
            grid = (1, more, window, window)
            forward = module.context_aggregation_forward_shared_memory(code, sizes, grid)
            if max(forward, module.context_aggregation_backward_shared_memory(code, sizes, grid)) > limit:
                return tokens
        tokens = more
