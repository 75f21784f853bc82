# SPDX-License-Identifier: MIT
"""Mistakes in annotations: found one by one, put right or refused together."""

from __future__ import annotations

import collections
from typing import NamedTuple

from training.errors import DataError

SHOWN = 5


class Problem(NamedTuple):
    """A mistake of one kind: `entry` of the file `file`; `fatal`: nothing can be trained on or evaluated with it."""

    file: str
    entry: str
    kind: str
    fatal: bool

    def __str__(self) -> str:
        return f"{self.file}: {self.entry}: {self.kind}"


def refuse(problems: list[Problem]) -> None:
    """Raises DataError if one of `problems` is fatal: names the first ones."""
    fatal = [problem for problem in problems if problem.fatal]
    if not fatal:
        return
    lines = [str(problem) for problem in fatal[:SHOWN]]
    if len(fatal) > SHOWN:
        lines.append(f"and {len(fatal) - SHOWN} more, which --check-data lists")
    raise DataError("\n  ".join(lines))


def remarks(problems: list[Problem]) -> list[str]:
    """A line for each kind of those that were put right."""
    counts = collections.Counter((problem.file, problem.kind) for problem in problems if not problem.fatal)
    return [f"{file}: {count} × {kind}" for (file, kind), count in counts.items()]
