# SPDX-License-Identifier: MIT
"""The gradient of a tensor whose Σ out and M2 = Σ (out − mean)² by channel come from the pass that wrote it.

    statistics_gradient_<backend>(out, grad_out, channel_sum, grad_sum, grad_m2)
        -> grad_out + grad_sum + 2 · (out − mean) · grad_m2

out and grad_out (…, C) and the result have one dtype, the vectors (C,) are in the accumulation dtype. mean is
channel_sum over the number of rows.
"""

from importlib import import_module

import torch
from torch import Tensor

from ..common.tensors import new_empty
from ..dispatch import preference
from ..dispatch.backend import why_not_here
from ..dispatch.registration import define, operator_of, refuse_double_backward

# Beside "reference". On a GPU in bfloat16 plain PyTorch moves four times as many bytes; on a CPU one pass more.
COMPILED = ("triton",)


def gradient_through_statistics(
    backend: str, out: Tensor, grad_out: Tensor, channel_sum: Tensor, grad_sum: Tensor, grad_m2: Tensor
) -> Tensor:
    """The gradient that reaches `out` (…, C) of which Σ out and M2 by channel were taken too, in the dtype of `out`.

        grad_out + grad_sum + 2 · (out − mean) · grad_m2

    Rounded once, after the sum: the statistics' share is small beside grad_out and would round away.

    Args:
        backend: the one that wrote `out`; it serves here too if it can, else the fastest that does. Where derivatives
            of the result are wanted, that is plain PyTorch.
    """
    name = None if torch.is_grad_enabled() else _serving(backend, out)
    if name is None:
        mean = channel_sum / max(1, out[..., 0].numel())
        total = torch.addcmul(grad_sum, out - mean, grad_m2, value=2)
        # In place: pages of one more temporary, fresh from the system, would cost more than a pass. But gradients of
        # many outputs at once (is_grads_batched) may have a dimension that those of the sums lack.
        is_batched = torch._C._functorch.is_legacy_batchedtensor(grad_out)
        return (total + grad_out if is_batched else total.add_(grad_out)).to(out.dtype)
    operator = operator_of("statistics_gradient", name)
    return operator(out, grad_out, channel_sum, grad_sum, grad_m2)


def _serving(backend: str, out: Tensor) -> str | None:
    """The first of `COMPILED` that can serve. What a user asks for now does not count: the forward pass has chosen."""
    names = (backend,) if backend in COMPILED else preference.order("statistics", out)
    return next((name for name in names if name in COMPILED and why_not_here(name, out) is None), None)


def _outputs(out: Tensor) -> Tensor:
    return new_empty(out, tuple(out.shape))


def _register(backend: str) -> None:
    def kernel(out, grad_out, channel_sum, grad_sum, grad_m2):
        total = _outputs(out)
        if total.numel():
            import_module(f"{__package__}.{backend}").gradient(
                *(t.contiguous() for t in (out, grad_out, channel_sum, grad_sum, grad_m2)), total=total
            )
        return total

    define(
        "statistics_gradient",
        backend,
        "(Tensor out, Tensor grad_out, Tensor channel_sum, Tensor grad_sum, Tensor grad_m2) -> Tensor",
        kernel,
        lambda out, *rest: _outputs(out),
    )
    refuse_double_backward("statistics_gradient", backend)


for _backend in COMPILED:
    _register(_backend)
