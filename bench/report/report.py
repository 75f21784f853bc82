# SPDX-License-Identifier: MIT
"""A table of measurements with its conditions: rows, what is missing and why; Markdown and JSON.

A report is written after every problem and can be continued by another process, so a crash costs one problem.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Row:
    """Ours against one baseline.

    Times are medians in ms. `ratio` is theirs / ours, both as one CUDA graph or both by launches: `cuda_graph` says
    which. `launched_ms` is ours by launches where `ours_ms` is a graph's. `memory` is ours / theirs; images per second
    are of networks alone.
    """

    problem: str
    against: str
    ours_ms: float
    theirs_ms: float
    ratio: float
    target: str | None
    met: bool | None
    floor_ms: float
    percent_of_floor: float
    noise_percent: float
    cuda_graph: bool
    launched_ms: float | None
    memory: float | None
    images_per_second: float | None


@dataclass
class Report:
    """Conditions, rows, and what was not measured or is wrong.

    `begun` is the problem that is being measured, `finished` those that need not be begun again.
    """

    device: str
    conditions: dict[str, str]
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    finished: list[str] = field(default_factory=list)
    begun: str | None = None

    def continue_from(self, path: Path) -> None:
        """Take over what an earlier process wrote; the problem that ended it is named as wrong and not tried again."""
        earlier = json.loads(path.read_text(encoding="utf-8"))
        self.rows = [Row(**row) for row in earlier["rows"]]
        for name in ("notes", "wrong", "finished"):
            setattr(self, name, earlier[name])
        if earlier["begun"] is not None:
            self.wrong.append(f"{earlier['begun']}: the process ended while it was measured")
            self.finished.append(earlier["begun"])

    def write(self, stem: Path) -> list[Path]:
        """Markdown and JSON beside each other; a reader never meets half a file."""
        stem.parent.mkdir(parents=True, exist_ok=True)
        paths = [stem.with_name(stem.name + suffix) for suffix in (".md", ".json")]
        texts = [self.markdown(), json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n"]
        for path, text in zip(paths, texts, strict=True):
            partial = path.with_name(path.name + ".partial")
            partial.write_text(text, encoding="utf-8")
            os.replace(partial, path)
        return paths

    def markdown(self) -> str:
        parts = [f"# Speed on {self.conditions['device']}"]
        parts.append("\n".join(f"- {name}: {value}" for name, value in self.conditions.items()))
        parts.append(_table(self.rows, self.device))
        parts.append(
            "Times are medians. Times faster: theirs / ours. Floor: the least time for the bytes that must move and\n"
            "the FLOPs at the rates above; a CPU's caches may beat it. Noise: how far ours timed twice was from itself."
        )
        if self.notes:
            parts.append("Not measured:\n\n" + "\n".join(f"- {note}" for note in self.notes))
        if self.wrong:
            parts.append("**Wrong results:**\n\n" + "\n".join(f"- {message}" for message in self.wrong))
        return "\n\n".join(parts) + "\n"


def _table(rows: Sequence[Row], device: str) -> str:
    """A Markdown table that is readable as text: words to the left, numbers to the right."""
    yes_no = {True: "yes", False: "no", None: "-"}
    columns = [
        ("problem", str.ljust, lambda r: r.problem),
        ("against", str.ljust, lambda r: r.against),
        ("ours, ms", str.rjust, lambda r: f"{r.ours_ms:.4g}"),
        ("theirs, ms", str.rjust, lambda r: f"{r.theirs_ms:.4g}"),
        ("times faster", str.rjust, lambda r: f"{r.ratio:.2f}"),
        ("target", str.ljust, lambda r: r.target or "-"),
        ("met", str.ljust, lambda r: yes_no[r.met]),
        ("floor, ms", str.rjust, lambda r: f"{r.floor_ms:.4g}"),
        ("% of floor", str.rjust, lambda r: f"{r.percent_of_floor:.0f}"),
        ("images/s", str.rjust, lambda r: _number(r.images_per_second, ".4g")),
        ("noise, %", str.rjust, lambda r: f"{r.noise_percent:.1f}"),
    ]
    if device == "cuda":
        columns += [
            ("CUDA graph", str.ljust, lambda r: yes_no[r.cuda_graph]),
            ("ours launched, ms", str.rjust, lambda r: _number(r.launched_ms, ".4g")),
            ("peak memory, ours / theirs", str.rjust, lambda r: _number(r.memory, ".2f")),
        ]
    cells = [[title, *map(text, rows)] for title, _, text in columns]
    widths = [max(map(len, column)) for column in cells]
    aligned = [
        [align(cell, width) for cell in column]
        for column, width, (_, align, _) in zip(cells, widths, columns, strict=True)
    ]
    rule = [
        "-" * width if align is str.ljust else "-" * (width - 1) + ":"
        for width, (_, align, _) in zip(widths, columns, strict=True)
    ]
    head, *body = zip(*aligned, strict=True)
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *body))


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
