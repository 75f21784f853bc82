# SPDX-License-Identifier: MIT
"""Checks of the arguments of `context_aggregation`."""

from collections.abc import Sequence
from numbers import Integral, Real

import torch
from torch import Tensor

from ..common.validation import check_bias, check_device, check_shape, check_tensor, check_window


def validate(q, k, v, alpha, beta, local_weight, local_bias, affinity, grid_size, scale, *, same_dtype: bool) -> None:
    """Raise ValueError or TypeError for the first argument that does not fit.

    Args:
        same_dtype: q and k must have the dtype of v. Without it, under autocast, they will be made equal, but
            float64 stays float64: all or none.
    """
    check_tensor("v", v, 4, "(B, N, M, D)")
    _, tokens, heads, head_dim = v.shape
    if heads < 1 or head_dim < 1:
        raise ValueError(f"v: expected (B, N, M, D) with at least one head and D ≥ 1, got {tuple(v.shape)}")
    if (q is None) != (k is None):
        given, missing = ("k", "q") if q is None else ("q", "k")
        raise ValueError(f"{missing}: expected a tensor because {given} is one (both, or None for both), got None")
    if q is not None:
        _check_like_v("q", q, v, same_dtype)
        _check_like_v("k", k, v, same_dtype)
    _check_not_heads_first(v, local_weight, affinity, grid_size)
    if q is None and local_weight is None and affinity is None:
        raise ValueError(
            "q, local_weight, affinity: expected at least one of the dynamic (q and k), local (local_weight) and "
            "dense (affinity) terms, got None for all"
        )
    if local_weight is not None:
        check_window("local_weight", local_weight, heads * head_dim, "v", v)
        if grid_size is None:
            raise ValueError(f"grid_size: expected (H, W) with H·W = {tokens} because local_weight is given, got None")
    if local_bias is not None:
        if local_weight is None:
            raise ValueError("local_bias: expected None because local_weight is None, got a value")
        check_bias("local_bias", local_bias, heads * head_dim, "v", v)
    if affinity is not None:
        check_tensor("affinity", affinity, 3, "(M, N, N)")
        check_shape("affinity", affinity, (heads, tokens, tokens), "(M, N, N)")
        check_device("affinity", affinity, "v", v)
    if grid_size is not None:
        _check_grid(grid_size, tokens)
    _check_per_head("alpha", alpha, v)
    _check_per_head("beta", beta, v)
    if scale is not None and not isinstance(scale, Real):
        raise TypeError(f"scale: expected a number or None, got {type(scale).__name__}")


def _check_not_heads_first(v: Tensor, local_weight, affinity, grid_size) -> None:
    """The static terms do not all say that v is (B, M, N, D), as attention elsewhere has it."""
    _, tokens, heads, head_dim = v.shape
    terms = []  # what each has, should have, and would have with heads and tokens exchanged
    if isinstance(affinity, Tensor) and affinity.ndim == 3:
        terms.append((tuple(affinity.shape), (heads, tokens, tokens), (tokens, heads, heads)))
    if isinstance(local_weight, Tensor) and local_weight.ndim == 3 and _is_grid(grid_size):
        sizes = (local_weight.shape[0], grid_size[0] * grid_size[1])
        terms.append((sizes, (heads * head_dim, tokens), (tokens * head_dim, heads)))
    if terms and all(sizes != expected and sizes == exchanged for sizes, expected, exchanged in terms):
        raise ValueError(
            f"v: expected (B, N, M, D), got {tuple(v.shape)}, which fits the other arguments as (B, M, N, D): pass "
            "q, k and v with transpose(1, 2)"
        )


def _is_grid(grid_size) -> bool:
    return isinstance(grid_size, Sequence) and len(grid_size) == 2 and all(isinstance(n, Integral) for n in grid_size)


def _check_like_v(name: str, value, v: Tensor, same_dtype: bool) -> None:
    check_tensor(name, value, 4, "(B, N, M, D)")
    check_shape(name, value, tuple(v.shape), "(B, N, M, D)")
    check_device(name, value, "v", v)
    fits = value.dtype == v.dtype if same_dtype else (value.dtype == torch.float64) == (v.dtype == torch.float64)
    if not fits:
        raise TypeError(f"{name}: expected dtype {v.dtype} as v, got {value.dtype}")


def _check_grid(grid_size, tokens: int) -> None:
    if not isinstance(grid_size, Sequence) or len(grid_size) != 2:
        raise ValueError(f"grid_size: expected (H, W) with H·W = {tokens}, got {grid_size!r}")
    height, width = grid_size
    # While torch.jit.trace records, the sizes of a tensor are tensors.
    integers = (Integral, torch.SymInt, Tensor) if torch.jit.is_tracing() else (Integral, torch.SymInt)
    if not all(isinstance(side, integers) and not isinstance(side, bool) for side in grid_size):
        raise TypeError(f"grid_size: expected two integers (H, W), got {grid_size!r}")
    if height < 0 or width < 0 or height * width != tokens:
        raise ValueError(f"grid_size: expected (H, W) with H·W = N = {tokens}, got {tuple(grid_size)}")


def _check_per_head(name: str, value, v: Tensor) -> None:
    heads = v.shape[2]
    if isinstance(value, Real):
        return
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a number or a tensor (), (1,) or ({heads},), got {type(value).__name__}")
    if not value.is_floating_point():
        raise TypeError(f"{name}: expected a floating-point tensor, got {value.dtype}")
    if tuple(value.shape) not in ((), (1,), (heads,)):
        raise ValueError(f"{name}: expected shape (), (1,) or (M,) = ({heads},), got {tuple(value.shape)}")
    # A zero-dimensional CPU tensor mixes with any device in PyTorch, here too.
    if value.ndim:
        check_device(name, value, "v", v)
