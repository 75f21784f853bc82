# SPDX-License-Identifier: MIT
"""The benchmark problem protocol, and the check against eager that a contender passes before it is timed."""

from collections.abc import Iterable
from typing import Protocol

import torch
from torch import Tensor

from bench.names import BACKENDS, EAGER, NOT_FUSED, OURS
from bench.roofline import Cost
from bench.timing import Contender

# Relative L2 difference to eager that rounding explains; a wrong border, tap or scale differs by far more.
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2}


class WrongResult(AssertionError):
    """A contender's result differs from eager's, or a backend of ours failed; its time would mean nothing."""

    def __init__(self, contender: str, message: str) -> None:
        super().__init__(message)
        self.contender = contender


class Problem(Protocol):
    """One computation that several implementations compete on."""

    name: str
    """What is computed on which shape; names the group of a benchmark and the row of the table."""
    kind: str
    """What its targets are filed under."""
    kernels: list[Cost]
    """What must move and be computed, kernel by kernel."""
    device: str
    dtype: torch.dtype
    tolerance: float
    """Relative L2 difference to eager that is allowed."""
    baselines: dict[str, tuple[str, ...]]
    """What ours is compared with: label -> contenders, of which the fastest counts."""

    def contender(self, name: str) -> Contender:
        """A contender on fresh inputs, the same numbers for every name."""

    def outputs(self, name: str, result) -> dict[str, Tensor]:
        """What a contender's call returned, by names that all contenders share."""


def contender_names(problem: Problem) -> list[str]:
    """Ours first, then every baseline's."""
    return list(dict.fromkeys([OURS, *(name for names in problem.baselines.values() for name in names)]))


def checked_contenders(problem: Problem, names: Iterable[str]) -> tuple[dict[str, Contender], dict[str, str]]:
    """Contenders that have run once and agree with eager, and for baselines that cannot run here the reason.

    Raises:
        WrongResult: a contender's result differs from eager's, or one of our backends failed.
    """
    reference = problem.contender(EAGER)
    expected = problem.outputs(EAGER, reference())
    contenders, unavailable = {}, {}
    for name in names:
        if name == EAGER:
            contenders[name] = reference
            continue
        try:
            contender = problem.contender(name)
            result = contender()
        # A compiler or an attention backend may fail in any way; ours may not, but a backend of ours may refuse.
        except Exception as error:
            if name in (OURS, NOT_FUSED):
                raise
            if name in BACKENDS and "cannot serve this call" not in str(error):
                raise WrongResult(name, f"{problem.name}: {name}: {error}") from error
            unavailable[name] = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
            continue
        difference = _difference(problem.outputs(name, result), expected, problem.tolerance)
        if difference:
            raise WrongResult(name, f"{problem.name}: {name}: {difference}")
        contenders[name] = contender
    return contenders, unavailable


def _difference(actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> str | None:
    """The first output that is further from eager's than rounding explains, in words."""
    # An attention kernel alone has no output in common with the whole.
    for name in actual.keys() & expected.keys():
        difference = actual[name].double() - expected[name].double()
        error = (difference.norm() / expected[name].double().norm()).item()
        if not error <= tolerance:  # a NaN fails too
            return f"{name} differs from eager by {error:.1e} (relative L2), allowed {tolerance:.0e}"
    return None
