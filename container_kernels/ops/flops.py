# SPDX-License-Identifier: MIT
"""What the operators multiply, for `torch.utils.flop_counter.FlopCounterMode` and the tools on top of it.

Counted as torch counts its own: two for a multiply-add, of matrix products and filters, whatever the implementation.
"""

from collections.abc import Callable
from math import prod

import torch
from torch.utils.flop_counter import register_flop_formula

from . import fused_mlp, projection
from .backend import DEVICE_TYPES
from .context_aggregation.schema import WITH_LOCAL_GRADIENT


def _filter(image, weight, *_, **__) -> int:
    return 2 * prod(image) * prod(weight[1:])


def _filter_gradient(grad_out, image, kh, kw, **_) -> int:
    return 2 * prod(image) * kh * kw


def _linear(x, weight, *_, **__) -> int:
    return 2 * prod(x) * weight[0]


def _linear_gradient(grad_out, x, weight, *_, **__) -> int:
    return 2 * _linear(x, weight)


def _mlp(x, w1, b1, w2, *_, **__) -> int:
    return _linear(x, w1) + 2 * prod(x[:-1]) * prod(w2)


def _mlp_gradient(grad_out, x, w1, b1, w2, *_, **__) -> int:
    """The hidden layer once more, and two products for each layer."""
    return 3 * _linear(x, w1) + 4 * prod(x[:-1]) * prod(w2)


def _mix(products: int, skipped: int, packed: bool, affinity: int | None = None) -> Callable[..., int]:
    """`products` of N×N, one more with a dense affinity, and the filters.

    `skipped` arguments come before q (or the packed projection); `affinity` is its place, counted from q.
    """

    def count(*arguments, **_) -> int:
        batch, tokens, *_, heads, head_dim = arguments[skipped]
        weight = arguments[skipped + (2 if packed else 4)]
        filters = 0 if weight is None else 2 * batch * tokens * heads * head_dim * prod(weight[1:])
        dense = affinity is not None and arguments[skipped + affinity - 2 * packed] is not None
        return 2 * (products + dense) * batch * heads * tokens**2 * head_dim + filters

    return count


def _register() -> None:
    formulas = {}
    for backend in DEVICE_TYPES:
        formulas |= {f"local_fwd_{backend}": _filter, f"local_fwd_stats_{backend}": _filter}
        formulas[f"local_bwd_weight_{backend}"] = _filter_gradient
        for packed in (False, True):
            name = f"packed_{backend}" if packed else backend
            formulas |= {f"mix_fwd_{name}": _mix(2, 0, packed, 6), f"mix_bwd_{name}": _mix(5, 1, packed, 5)}
            if backend in WITH_LOCAL_GRADIENT:
                formulas[f"mix_bwd_local_{name}"] = _mix(5, 1, packed)
    for backend in projection.backends.COMPILED:
        formulas |= {f"proj_fwd_{backend}": _linear, f"proj_fwd_stats_{backend}": _linear}
        formulas[f"proj_bwd_{backend}"] = _linear_gradient
    for backend in fused_mlp.backends.COMPILED:
        formulas |= {f"mlp_fwd_{backend}": _mlp, f"mlp_bwd_{backend}": _mlp_gradient}
    for name, formula in formulas.items():
        register_flop_formula(getattr(torch.ops.container_kernels, name))(formula)


_register()
