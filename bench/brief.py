# SPDX-License-Identifier: MIT
"""One line a problem of a table that `bench/table.py` wrote: python bench/brief.py RESULT.json

Columns: microseconds of ours, how many % of them the floor is, how many times faster ours is than each baseline, the
microseconds of our backends by name, and of networks images a second and peak memory over eager's.
"""

import json
import sys
from pathlib import Path

from contenders import BACKENDS, NOT_FUSED


def lines(report: dict) -> list[str]:
    """The table as aligned text; a star behind a ratio says that its target is met, an exclamation mark that not."""
    problems: dict[str, list[dict]] = {}
    for row in report["rows"]:
        problems.setdefault(row["problem"], []).append(row)
    head = (
        "problem", "ours µs", "% floor", "eager", "compiled", "attention", "not fused", "cuda µs", "triton µs",
        "images/s", "memory",
    )  # fmt: skip
    table = [head]
    for problem, rows in problems.items():
        against = {row["against"].partition(" (")[0]: row for row in rows}

        def ratio(baseline: str, against=against) -> str:
            row = against.get(baseline)
            return "-" if row is None else f"{row['ratio']:.2f}{ {True: '*', False: '!', None: ''}[row['met']] }"

        def microseconds(baseline: str, against=against) -> str:
            row = against.get(baseline)
            return "-" if row is None else f"{1e3 * row['theirs_ms']:.1f}"

        baselines = ("eager", "torch.compile of eager", "fastest attention alone", NOT_FUSED)
        ours = f"{1e3 * rows[0]['ours_ms']:.1f}", f"{rows[0]['percent_of_floor']:.0f}"
        images, memory = rows[0].get("images_per_second"), against.get("eager", {}).get("memory")
        network = "-" if images is None else f"{images:.0f}", "-" if memory is None else f"{memory:.2f}"
        table.append((problem, *ours, *map(ratio, baselines), *map(microseconds, BACKENDS), *network))
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "  ".join([line[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(line[1:], widths[1:], strict=True))])
        for line in table
    ]


def main(path: str) -> None:
    report = json.loads(Path(path).read_text(encoding="utf-8"))
    print("\n".join(lines(report)))
    for message in (*report["notes"], *report["wrong"]):
        print(message)


if __name__ == "__main__":
    main(sys.argv[1])
