# SPDX-License-Identifier: MIT
"""One line per problem of tables that `bench.table` wrote.

    python -m bench.report.summary RESULT.json [RESULT.json ...]

Columns: microseconds of ours, how many times faster ours is than each baseline, the floor and how many % of ours it is,
the prediction (for one H100) and measured / predicted, the noise of ours timed twice in %, ours by launches in place of
a CUDA graph, our backends by name; of networks images per second and peak memory over eager's. A column that no problem
has is left out; the same problem in several files is one line.
"""

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.names import BACKENDS, NOT_FUSED, ORIGINAL
from bench.report.predictions import predicted_us

# Baseline -> title of the column of ratios.
RATIOS = {
    "eager": "eager",
    "torch.compile of eager": "comp",
    "fastest attention alone": "attn",
    NOT_FUSED: "not fused",
    ORIGINAL: "orig",
}
# In this order: the longer text first.
_SHORTER = (
    ("forward + backward", "fwd+bwd"),
    ("forward", "fwd"),
    (" channels", ""),
    (" heads", "h"),
    ("fused_", ""),
    ("deformable_attention encoder", "deform enc"),
    ("deformable_attention decoder", "deform dec"),
    (" queries", "q"),
    (" and residual", " + x"),
    (", ", " "),
)


def lines(*reports: dict) -> list[str]:
    """The tables as aligned text; a star behind a ratio says that its target is met, an exclamation mark that not."""
    problems: dict[str, dict[str, dict]] = {}
    for report in reports:
        for row in report["rows"]:
            problems.setdefault(row["problem"], {}).setdefault(row["against"].partition(" (")[0], row)
    table = [_cells(problem, against) for problem, against in problems.items()]
    titles = [title for title in (table[0] if table else {}) if any(cells[title] != "-" for cells in table)]
    grid = [titles, *([cells[title] for title in titles] for cells in table)]
    widths = [max(map(len, column)) for column in zip(*grid, strict=True)]
    return [
        "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))])
        for line in grid
        if line
    ]


def _cells(problem: str, against: dict[str, dict]) -> dict[str, str]:
    """Texts by title of one problem, whose rows are given by baseline."""
    row = next(iter(against.values()))
    us, predicted = 1e3 * row["ours_ms"], predicted_us(problem)
    launched = row.get("launched_ms")
    memory = against.get("eager", {}).get("memory")
    cells = {"problem": shorter(problem), "ours µs": f"{us:.1f}"}
    for baseline, title in RATIOS.items():
        cells[title] = _ratio(against.get(baseline))
    cells |= {
        "floor": f"{1e3 * row['floor_ms']:.1f}",
        "%floor": f"{row['percent_of_floor']:.0f}",
        "pred": "-" if predicted is None else f"{predicted:g}",
        "×pred": "-" if predicted is None else f"{us / predicted:.2f}",
        "noise%": f"{row['noise_percent']:.1f}",
        "launch": "-" if launched is None else f"{1e3 * launched:.1f}",
    }
    for baseline in BACKENDS:
        theirs = against.get(baseline)
        cells[baseline.removeprefix("ours on ")] = "-" if theirs is None else f"{1e3 * theirs['theirs_ms']:.1f}"
    images = row.get("images_per_second")
    cells["images/s"] = "-" if images is None else f"{images:.0f}"
    cells["memory"] = "-" if memory is None else f"{memory:.2f}"
    return cells


def _ratio(row: dict | None) -> str:
    return "-" if row is None else f"{row['ratio']:.2f}{ {True: '*', False: '!', None: ''}[row['met']] }"


def shorter(problem: str) -> str:
    """A problem's name for narrow tables."""
    for text, short in _SHORTER:
        problem = problem.replace(text, short)
    return problem


def wrong(*reports: dict) -> list[str]:
    """Results that are wrong, and crashes."""
    return [message for report in reports for message in report["wrong"]]


def notes(*reports: dict) -> list[str]:
    """Reasons for what was not measured, a problem that was begun and not ended first."""
    begun = [f"{report['begun']}: begun and not ended" for report in reports if report.get("begun")]
    return [*begun, *(note for report in reports for note in report["notes"])]


def furthest_from_prediction(*reports: dict, count: int = 3) -> list[str]:
    """The problems whose measured time differs by the largest factor from the predicted one, up or down, and by which.

    Far below is as likely a mistake, of the prediction or of the measurement, as far above.
    """
    # Backwards, so that of several measurements the first counts, as in the lines.
    ours = {r["problem"]: 1e3 * r["ours_ms"] for report in reversed(reports) for r in reversed(report["rows"])}
    ratios = {problem: us / predicted for problem, us in ours.items() if (predicted := predicted_us(problem))}
    worst = sorted(ratios, key=lambda problem: abs(math.log(ratios[problem])), reverse=True)[:count]
    return [f"{shorter(problem)}: {ratios[problem]:.2f} times the prediction" for problem in worst]


def main(paths: Sequence[str]) -> None:
    reports = [json.loads(Path(path).read_text(encoding="utf-8")) for path in paths]
    print("\n".join([*lines(*reports), *wrong(*reports), *notes(*reports)]))


if __name__ == "__main__":
    main(sys.argv[1:])
