# SPDX-License-Identifier: MIT
"""Error budget of a kernel: a small multiple of PyTorch's own error in the same dtype."""

import torch
from torch import Tensor

from ..ops.common.tensors import accumulation_dtype


def assert_within_budget(
    name: str, actual: Tensor, eager: Tensor, exact: Tensor, *, factor: float = 2.0, summed: Tensor | None = None
) -> None:
    """Fail unless max|actual − exact| ≤ factor · max|eager − exact| + rounding.

    Args:
        name: what is compared, for the message.
        actual: the kernel's result.
        eager: plain PyTorch's result from the same inputs in the same dtype.
        exact: the result in float64 from the same inputs, promoted.
        factor: multiple of PyTorch's own error that is allowed.
        summed: for a result of one or a few sums, all their terms. Eager's error on so few numbers is luck, so every
            term may be rounded once in the accumulation dtype, in random directions: eps · ‖summed‖₂.

    Rounding covers eager being exact by chance: one rounding, in the result's dtype, of its largest element. A float64
    result has no exacter judge than another float64 one: it may differ by 1e-12 of the largest element.
    """
    if actual.shape != exact.shape:
        raise AssertionError(f"{name}: expected shape {tuple(exact.shape)}, got {tuple(actual.shape)}")
    if actual.numel() == 0:
        return
    exact = exact.double()
    error = (actual.double() - exact).abs().max().item()
    eager_error = (eager.double() - exact).abs().max().item()
    rounding = 1e-12 if actual.dtype == torch.float64 else torch.finfo(actual.dtype).eps
    budget = factor * eager_error + rounding * exact.abs().max().item()
    if summed is not None:
        budget += torch.finfo(accumulation_dtype(actual.dtype)).eps * summed.double().norm().item()
    if not error <= budget:  # a NaN fails too
        raise AssertionError(
            f"{name} ({actual.dtype}): error {error:.3e} over the budget {budget:.3e}, PyTorch's is {eager_error:.3e}"
        )
