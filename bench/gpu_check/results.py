# SPDX-License-Identifier: MIT
"""The results of a stage: one archive of logs and tables, written again whenever something ended, and a summary."""

import io
import json
import os
import re
import tarfile
from collections import Counter
from pathlib import Path

from bench.gpu_check.steps import Step
from bench.report import predictions
from bench.report import summary as table_summary

# Characters. Of a remote command often only the end of the output is seen, 12,000 characters say.
LONGEST_SUMMARY = 11_500
LONGEST_LINE = 100
# Lines of what failed, and of what is wrong.
MOST = 8
# "[gw1] [ 12%] PASSED tests/…" of a worker, "tests/… PASSED [ 12%]" without.
_OUTCOME = re.compile(
    r"(?:\] (PASSED|FAILED|ERROR|SKIPPED) )?(\S*tests/\S+?::.*?)(?: (PASSED|FAILED|ERROR|SKIPPED)\b.*)?\s*$"
)
_DTYPES = ("tf32", "float32", "float16", "bfloat16", "float64")


class Results:
    """Results of the steps of one stage.

    Args:
        folder: gets `results-STAGE.tar.gz` and `summary-STAGE.md`, nothing else.
        work: where steps write their logs and tables.
        head: the first lines of the summary.
    """

    def __init__(self, stage: int, folder: Path, work: Path, head: str) -> None:
        self.stage, self.folder, self.work, self.head = stage, folder, work, head
        self.steps: list[dict] = []

    def log(self, step: str) -> Path:
        return self.work / f"{step}.log"

    def print(self, line: str) -> None:
        print(line, flush=True)

    def add(self, step: Step, state: str, seconds: float, *, partial: bool) -> None:
        """Note the end of a step. `partial`: it is no failure, although it may not have done everything."""
        record = {"step": step.name, "state": state, "seconds": round(seconds), "expected": step.expected}
        self.steps.append({**record, "failed": not partial, "last line": _last_line(self.log(step.name))})
        self.print(self._line(self.steps[-1]))

    def failed(self, step: str) -> bool:
        return any(record["failed"] for record in self.steps if record["step"] == step)

    def failures(self) -> list[str]:
        return [record["step"] for record in self.steps if record["failed"]]

    def save(self) -> None:
        """Write the archive and the summary; a reader meets the old ones or the new ones, whole."""
        summary = self.summary()
        _replace(self.work / "summary.md", summary.encode())
        _replace(self.work / "steps.json", json.dumps(self.steps, indent=1, ensure_ascii=False).encode())
        self.folder.mkdir(parents=True, exist_ok=True)
        _replace(self.folder / f"summary-{self.stage}.md", summary.encode())
        _replace(self.folder / f"results-{self.stage}.tar.gz", self._archive())

    def summary(self) -> str:
        """Findings, in few enough characters to be the end of a remote command's output."""
        reports = self.reports()
        wrong, notes = table_summary.wrong(*reports), table_summary.notes(*reports)
        furthest = "; ".join(table_summary.furthest_from_prediction(*reports))
        networks = [report for report in reports if any(row["images_per_second"] for row in report["rows"])]
        ops = [report for report in reports if report not in networks]
        parts = [
            [self.head],
            [self._line(record) for record in self.steps],
            self._tests(),
            _first(wrong, "wrong: "),
            [f"furthest from what is predicted for an {predictions.DEVICE}: {furthest}"] if furthest else [],
            table_summary.lines(*networks),
            table_summary.lines(*ops),
            self._rates(),
            [_cut(note) for note in notes],
        ]
        text = "\n\n".join("\n".join(part) for part in parts if part) + "\n"
        rest = "\n… the archive has the rest\n"
        return text if len(text) <= LONGEST_SUMMARY else text[: LONGEST_SUMMARY - len(rest)] + rest

    def reports(self) -> list[dict]:
        """The tables so far, in the order of the steps."""
        found = []
        for path in self.work.glob("*.json"):
            try:
                report = json.loads(path.read_text(encoding="utf-8"))
            except ValueError:  # a file that a killed process left half written
                continue
            if isinstance(report, dict) and "rows" in report:
                found.append((path.stat().st_mtime, report))
        begun = {id(report): time for time, report in found}
        return sorted((report for _, report in found), key=lambda report: begun[id(report)])

    def _tests(self) -> list[str]:
        """Passed of all by step and dtype, then what failed."""
        lines, failed = [], []
        for path in sorted(self.work.glob("tests-*.log")):
            log = path.read_text(encoding="utf-8", errors="replace")
            outcomes = test_outcomes(log)
            counts: dict[str, Counter] = {}
            for test, outcome in outcomes.items():
                counts.setdefault(dtype_of(test), Counter())[outcome] += 1
            texts = []
            for dtype, count in sorted(counts.items()):
                skipped = f", {count['SKIPPED']} skipped" if count["SKIPPED"] else ""
                texts.append(f"{dtype} {count['PASSED']} of {count.total() - count['SKIPPED']}{skipped}")
            left = max(0, collected(log) - len(outcomes))
            texts += [f"NOT RUN {left}"] if left else []
            lines += [f"{path.stem} passed: {'; '.join(texts)}"] if texts else []
            failed += [test for test, outcome in outcomes.items() if outcome in ("FAILED", "ERROR")]
        return [*lines, *_first(failed, "failed: ")]

    def _rates(self) -> list[str]:
        path = self.work / "device.json"
        if not path.exists():
            return []
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:  # half written
            return []
        return [f"floors by: {facts['rates of floors']['source']}", f"now: {facts['rates measured']['source']}"]

    def _line(self, record: dict) -> str:
        seconds = f"{record['seconds']:>4} s of {record['expected']} expected"
        return _cut(f"{record['step']:<25} {record['state']:<12} {seconds:<22} {record['last line']}")

    def _archive(self) -> bytes:
        """All files of the work folder but programs, as they are now: steps may still be writing."""
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
            for path in sorted(self.work.rglob("*")):
                if path.suffix in (".log", ".json", ".md") and path.is_file():
                    content = path.read_bytes()
                    member = tarfile.TarInfo(f"stage{self.stage}/{path.relative_to(self.work)}")
                    member.size, member.mtime = len(content), int(path.stat().st_mtime)
                    archive.addfile(member, io.BytesIO(content))
        return buffer.getvalue()


def test_outcomes(log: str) -> dict[str, str]:
    """Outcome by test of pytest -v, the last one where a test has several."""
    outcomes = {}
    for line in log.splitlines():
        match = _OUTCOME.search(line)
        if match and (match[1] or match[3]):
            outcomes[match[2]] = match[1] or match[3]
    return outcomes


def collected(log: str) -> int:
    """Number of tests that pytest was going to run, with workers or without; 0 where it did not come so far."""
    counts = re.findall(r"\[(\d+) items?\]|(\d+) selected$|^collected (\d+) items?$", log, re.MULTILINE)
    return int(next(filter(None, counts[-1]))) if counts else 0


def dtype_of(test: str) -> str:
    """The dtype that a test's name tells, or "any"."""
    words = re.split(r"[^a-z0-9]+", test)
    return next((dtype for dtype in _DTYPES if dtype in words), "any")


def _last_line(path: Path) -> str:
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    return next((line.strip("= ") for line in reversed(lines) if line.strip("= ")), "")


def _first(texts: list[str], what: str) -> list[str]:
    lines = [_cut(f"{what}{text}") for text in texts[:MOST]]
    return [*lines, f"and {len(texts) - MOST} more"] if len(texts) > MOST else lines


def _cut(line: str) -> str:
    return line if len(line) <= LONGEST_LINE else line[: LONGEST_LINE - 1] + "…"


def _replace(path: Path, content: bytes) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content)
    os.replace(partial, path)
