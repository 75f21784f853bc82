# SPDX-License-Identifier: MIT
"""The ratio table: ours against eager and `torch.compile` on the machine at hand, with targets, floors and noise.

    python bench/table.py                        everything
    python bench/table.py --only mix,model       some of mix, depthwise, mlp, projection, block, model, column
    python bench/table.py --no-compile           without torch.compile, which takes longer than all else
    python bench/table.py --limit 200            begins no problem after 200 seconds
    python bench/table.py --threads 1            the time of one thread, which other processes do not lengthen
    python bench/table.py --quick                one small problem a section, without torch.compile: a look

Prints the table, and writes it as Markdown and JSON, with the conditions it was measured under, to bench/results
(--output) in files named by device, dtype, torch version and date. Exits with 1 when a result is wrong: that problem
has no row then.
"""

import argparse
import json
import math
import re
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import cases
import floors
import machine
import torch
from contenders import COMPILED, OURS, Problem, checked_contenders, contender_names
from floors import Rates
from network_problems import ModelProblem
from targets import target
from timing import measure, peak_memory
from tqdm import tqdm


@dataclass(frozen=True)
class Row:
    """Ours against one baseline. Times are medians in ms; ratio is theirs / ours; memory is ours / theirs; images of
    networks alone, ours."""

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
    memory: float | None
    images_per_second: float | None


@dataclass
class Report:
    """What is written down: conditions, rows, and what could not be measured and why."""

    device: str
    conditions: dict[str, str]
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

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


def measure_problem(problem: Problem, names: Sequence[str], rates: Rates, seconds: float, report: Report) -> None:
    """Add the rows of one problem to the report, or why there are none."""
    try:
        contenders, unavailable = checked_contenders(problem, names)
    except AssertionError as error:
        report.wrong.append(str(error))
        return
    report.notes += [f"{problem.name}: {name}: {reason}" for name, reason in unavailable.items()]
    measured = measure(contenders, problem.device, seconds)
    contenders.clear()
    memory = _peak_memory(problem, measured.milliseconds)
    ours = measured.milliseconds[OURS]
    floor_ms = rates.floor_ms(problem.kernels)
    for baseline, members in problem.baselines.items():
        times = {name: measured.milliseconds[name] for name in members if name in measured.milliseconds}
        if not times:
            continue
        fastest = min(times, key=times.get)
        wanted = target(problem.kind, baseline, problem.device)
        ratio = times[fastest] / ours
        memory_ratio = memory[OURS] / memory[fastest] if memory else None
        report.rows.append(
            Row(
                problem=problem.name,
                against=baseline if fastest in (baseline, COMPILED) else f"{baseline} ({fastest})",
                ours_ms=ours,
                theirs_ms=times[fastest],
                ratio=ratio,
                target=None if wanted is None else str(wanted),
                met=None if wanted is None else wanted.met(ratio, floor_ms / ours, memory_ratio),
                floor_ms=floor_ms,
                percent_of_floor=100 * floor_ms / ours,
                noise_percent=100 * measured.noise,
                cuda_graph=measured.cuda_graph,
                memory=memory_ratio,
                images_per_second=1e3 * problem.batch / ours if isinstance(problem, ModelProblem) else None,
            )
        )


def measure_what_fits(problem: Problem, names: Sequence[str], rates: Rates, seconds: float, report: Report) -> None:
    """`measure_problem`; for a network that does not fit, eager CONTAINER for one, with half the batch, and so on."""
    while True:
        try:
            return measure_problem(problem, names, rates, seconds, report)
        except torch.OutOfMemoryError as error:
            report.notes.append(f"{problem.name}: {str(error).splitlines()[0]}")
            torch.cuda.empty_cache()
        if not isinstance(problem, ModelProblem) or problem.batch == 1:
            return None
        problem = replace(problem, batch=problem.batch // 2)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_options(arguments)
    device = options.device
    if options.threads:
        torch.set_num_threads(options.threads)
    chosen = cases.small_problems if options.quick else cases.all_problems
    problems = [p for section in options.only for p in chosen(device, [section])[: 1 if options.quick else None]]
    rates = floors.rates(machine.device_name(device), device, machine.bench_dtype(device))
    report = Report(device, {**machine.conditions(device), "floor": rates.source})

    end = time.monotonic() + options.limit
    progress = tqdm(problems, unit="problem", disable=None)
    for problem in progress:
        if time.monotonic() > end:
            report.notes.append(f"{problem.name}: {options.limit:.0f} seconds were over")
            continue
        progress.set_description(problem.name)
        names = [name for name in contender_names(problem) if options.compile or name != COMPILED]
        measure_what_fits(problem, names, rates, options.seconds, report)
        write(report, options)  # what a later problem ends, a crash or the clock, keeps what was measured

    print(report.markdown())
    for path in write(report, options):
        print(f"wrote {path}")
    return 1 if report.wrong else 0


def write(report: Report, options: argparse.Namespace) -> list[Path]:
    """Markdown and JSON named by every condition; parts of the table never overwrite the whole."""
    facts = report.conditions
    parts = [facts["device"], facts["dtype"], f"torch{facts['torch']}", facts["date"]]
    parts += [] if tuple(options.only) == cases.SECTIONS else options.only
    parts += ["quick"] if options.quick else []
    stem = "-".join(re.sub(r"[^A-Za-z0-9.-]+", "_", part).strip("_") for part in parts)
    options.output.mkdir(parents=True, exist_ok=True)
    paths = [options.output / f"{stem}.md", options.output / f"{stem}.json"]
    paths[0].write_text(report.markdown(), encoding="utf-8")
    paths[1].write_text(json.dumps(asdict(report), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return paths


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
        ("images/s", str.rjust, lambda r: "-" if r.images_per_second is None else f"{r.images_per_second:.4g}"),
        ("noise, %", str.rjust, lambda r: f"{r.noise_percent:.1f}"),
    ]
    if device == "cuda":
        columns += [
            ("CUDA graph", str.ljust, lambda r: yes_no[r.cuda_graph]),
            ("peak memory, ours / theirs", str.rjust, lambda r: "-" if r.memory is None else f"{r.memory:.2f}"),
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


def _peak_memory(problem: Problem, names: Iterable[str]) -> dict[str, int]:
    """Bytes a training step needs at most by contender, each alone on the GPU; empty for anything else."""
    if problem.device != "cuda" or not problem.kind.endswith("training step"):
        return {}
    peaks = {}
    torch.cuda.empty_cache()
    for name in names:
        contender = problem.contender(name)
        contender()  # compiles, and allocates the optimizer's state
        peaks[name] = peak_memory(contender)
        del contender
        torch.cuda.empty_cache()
    return peaks


def parse_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    def sections(text: str) -> list[str]:
        names = text.split(",")
        for name in names:
            if name not in cases.SECTIONS:
                raise argparse.ArgumentTypeError(f"expected some of {', '.join(cases.SECTIONS)}, got {name!r}")
        return names

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=sections, default=list(cases.SECTIONS), help="sections, with commas")
    parser.add_argument("--quick", action="store_true", help="one small problem a section, without torch.compile")
    parser.add_argument("--output", type=Path, default=machine.ROOT / "bench" / "results", help="folder to write to")
    parser.add_argument("--device", choices=("cuda", "cpu"), default=machine.default_device())
    parser.add_argument("--seconds", type=float, default=None, help="time to spend timing one problem, about")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, help="whether to time torch.compile")
    parser.add_argument("--threads", type=int, default=None, help="of a CPU; with 1 the time is that of the thread")
    parser.add_argument("--limit", type=float, default=math.inf, help="seconds after which no problem is begun")
    options = parser.parse_args(arguments)
    if options.compile is None:
        options.compile = not options.quick
    if options.seconds is None:
        options.seconds = 0.5 if options.quick else 4.0
    return options


if __name__ == "__main__":
    sys.exit(main())
