# SPDX-License-Identifier: MIT
"""What a problem is, and the gate in front of the clock: only contenders that compute the same thing are timed."""

from collections.abc import Iterable
from typing import Protocol

import torch
from floors import Cost
from timing import Contender
from torch import Tensor

OURS, EAGER, COMPILED = "ours", "eager", "torch.compile"
# A network of ours in evaluation as it is trained, before `fuse()`.
NOT_FUSED = "ours, not fused"
# Ours on a backend that is asked for: what the automatic choice of a GPU's ops is judged by.
BACKENDS = {"ours on cuda": "cuda", "ours on triton": "triton"}

# Relative L2 difference to eager that rounding explains; a wrong border, tap or scale differs by far more.
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2}


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
        AssertionError: a contender's result differs from eager's, so that its time would mean nothing; or one of our
            backends failed.
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
                raise AssertionError(f"{problem.name}: {name}: {error}") from error
            unavailable[name] = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
            continue
        _check(f"{problem.name}: {name}", problem.outputs(name, result), expected, problem.tolerance)
        contenders[name] = contender
    return contenders, unavailable


def _check(what: str, actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    # An attention kernel alone has no output in common with the whole.
    for name in actual.keys() & expected.keys():
        difference = actual[name].double() - expected[name].double()
        error = (difference.norm() / expected[name].double().norm()).item()
        if not error <= tolerance:  # a NaN fails too
            raise AssertionError(
                f"{what}: {name} differs from eager by {error:.1e} (relative L2), allowed {tolerance:.0e}"
            )
