# SPDX-License-Identifier: MIT
"""How wrong a kernel may be: a small multiple of PyTorch's own error in the same dtype."""

import torch
from torch import Tensor


def assert_within_budget(name: str, actual: Tensor, eager: Tensor, exact: Tensor, *, factor: float = 2.0) -> None:
    """Fail unless max|actual − exact| ≤ factor · max|eager − exact| + one rounding of the largest element.

    Args:
        name: what is compared, for the message.
        actual: the kernel's result.
        eager: plain PyTorch's result from the same inputs in the same dtype.
        exact: the result in float64 from the same inputs, promoted.
        factor: multiple of PyTorch's own error that is allowed.

    The rounding term serves cases where eager happens to be exact: the result itself has to be rounded once to its
    dtype, and once more where an intermediate of that size is stored.
    """
    if actual.shape != exact.shape:
        raise AssertionError(f"{name}: expected shape {tuple(exact.shape)}, got {tuple(actual.shape)}")
    if actual.numel() == 0:
        return
    exact = exact.double()
    error = (actual.double() - exact).abs().max().item()
    eager_error = (eager.double() - exact).abs().max().item()
    budget = factor * eager_error + torch.finfo(actual.dtype).eps * exact.abs().max().item()
    if not error <= budget:  # a NaN fails too
        raise AssertionError(
            f"{name} ({actual.dtype}): error {error:.3e} over the budget {budget:.3e} (PyTorch's own: {eager_error:.3e})"
        )
