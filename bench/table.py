# SPDX-License-Identifier: MIT
"""The ratio table: ours against eager and `torch.compile` on the machine at hand, with targets, floors and noise.

    python -m bench.table                           everything
    python -m bench.table --only fused_mlp,model    some sections; all are context_aggregation, local_aggregation,
                                                    fused_mlp, projection, block, model and isotropic
    python -m bench.table --only local_aggregation --match 5×5   problems whose names have a regular expression
    python -m bench.table --no-compile              without torch.compile, which takes longer than all else
    python -m bench.table --limit 200               begins no problem after 200 seconds
    python -m bench.table --threads 1               the time of one thread, which other processes do not lengthen
    python -m bench.table --quick                   one small problem per section, without torch.compile: a look

Prints the table, and writes it as Markdown and JSON, with the conditions it was measured under, to bench/results
(--output) in files named by device, dtype, torch version and date. It is written after every problem: --resume goes on
behind the one that ended an earlier process. Exits with 1 when a result is wrong (that contender has no row then), with
3 when a kernel made the GPU unusable for this process, with 4 when a problem took longer than --hang.
"""

import argparse
import math
import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from bench import ROOT, machine, roofline
from bench.names import COMPILED, OURS
from bench.problems.networks import ModelProblem
from bench.problems.problem import Problem, WrongResult, checked_contenders, contender_names
from bench.problems.sections import SECTIONS, all_problems, small_problems
from bench.report.report import Report, Row
from bench.roofline import Rates
from bench.targets import target
from bench.timing import Measurement, measure, peak_memory

DEVICE_LOST, HUNG = 3, 4


class DeviceLost(Exception):
    """The process can launch nothing any more: an illegal access, say, ends its CUDA context."""


def measure_problem(problem: Problem, names: Sequence[str], rates: Rates, seconds: float, report: Report) -> None:
    """Add the rows of one problem to the report, and why others are missing."""
    names = list(names)
    while True:
        try:
            contenders, unavailable = checked_contenders(problem, names)
            break
        except WrongResult as error:
            report.wrong.append(str(error))
            check_device(problem.device)
            if error.contender == OURS:
                return
            names.remove(error.contender)
    report.notes += [f"{problem.name}: {name}: {reason}" for name, reason in unavailable.items()]
    measured = measure(contenders, problem.device, seconds)
    report.notes += [f"{problem.name}: {n}: no CUDA graph: {reason}" for n, reason in measured.not_captured.items()]
    contenders.clear()
    report.rows += rows(problem, measured, peak_memories(problem, measured.milliseconds), rates)


def rows(problem: Problem, measured: Measurement, memory: dict[str, int], rates: Rates) -> Iterator[Row]:
    """One row per baseline that was measured."""
    ours = measured.milliseconds[OURS]
    floor_ms = rates.floor_ms(problem.kernels)
    for baseline, members in problem.baselines.items():
        times = {name: measured.milliseconds[name] for name in members if name in measured.milliseconds}
        if not times:
            continue
        fastest = min(times, key=times.get)
        wanted = target(problem.kind, baseline, problem.device)
        ratio = times[fastest] / measured.ours_beside(fastest)
        memory_ratio = memory[OURS] / memory[fastest] if memory else None
        yield Row(
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
            cuda_graph=measured.cuda_graph and fastest not in measured.not_captured,
            launched_ms=measured.launched_ms,
            memory=memory_ratio,
            images_per_second=1e3 * problem.batch / ours if isinstance(problem, ModelProblem) else None,
        )


def measure_what_fits(problem: Problem, names: Sequence[str], rates: Rates, seconds: float, report: Report) -> None:
    """`measure_problem`; for a network that does not fit, eager CONTAINER for one, with half the batch, and so on.

    Raises:
        DeviceLost: nothing more can be measured in this process.
    """
    while True:
        try:
            return measure_problem(problem, names, rates, seconds, report)
        except torch.OutOfMemoryError as error:
            report.notes.append(f"{problem.name}: {str(error).splitlines()[0]}")
            torch.cuda.empty_cache()
        except DeviceLost:
            raise
        # Whatever a first run on a GPU meets costs this problem and not those after it.
        except Exception as error:
            traceback.print_exc()
            first = (str(error).strip().splitlines() or [""])[0]
            report.wrong.append(f"{problem.name}: {type(error).__name__}: {first}")
            check_device(problem.device)
            return None
        if not isinstance(problem, ModelProblem) or problem.batch == 1:
            return None
        problem = replace(problem, batch=problem.batch // 2)


def check_device(device: str) -> None:
    """Raises `DeviceLost` where a synchronization fails."""
    if device == "cuda":
        try:
            torch.cuda.synchronize()
        except RuntimeError as error:
            raise DeviceLost(str(error).splitlines()[0]) from error


@contextmanager
def ended_after(seconds: float, what: str) -> Iterator[None]:
    """End the process when the block takes longer: a kernel that hangs cannot be interrupted."""

    def end() -> None:
        print(f"{what}: not over after {seconds:.0f} s", file=sys.stderr, flush=True)
        os._exit(HUNG)

    timer = threading.Timer(min(seconds, threading.TIMEOUT_MAX), end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def peak_memories(problem: Problem, names: Sequence[str]) -> dict[str, int]:
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


def chosen_problems(options: argparse.Namespace) -> list[Problem]:
    """Problems in the order of the table."""
    make = small_problems if options.quick else all_problems
    problems = []
    for section in options.only:
        matching = [p for p in make(options.device, [section]) if wanted_by(options, p)]
        problems += matching[: 1 if options.quick else None]
    if options.batch:
        problems = [replace(p, batch=options.batch) if isinstance(p, ModelProblem) else p for p in problems]
    return problems


def wanted_by(options: argparse.Namespace, problem: Problem) -> bool:
    return bool(
        (options.match is None or options.match.search(problem.name))
        and not (options.leave_out and options.leave_out.search(problem.name))
    )


def chosen_names(options: argparse.Namespace, problem: Problem) -> list[str]:
    """Contenders in the order they are timed in."""
    names = contender_names(problem)
    if options.compile == "alone":
        return [name for name in names if name in (OURS, COMPILED)]
    return [name for name in names if options.compile or name != COMPILED]


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_options(arguments)
    device = options.device
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.compile_mode:
        machine.COMPILE_MODES[device] = options.compile_mode
    rates = roofline.rates(machine.device_name(device), device, machine.bench_dtype(device))
    report = Report(device, {**machine.conditions(device), "floor": rates.source})
    stem = options.output / file_stem(report, options)
    if options.resume and stem.with_name(stem.name + ".json").exists():
        report.continue_from(stem.with_name(stem.name + ".json"))

    end = time.monotonic() + options.limit
    problems = [problem for problem in chosen_problems(options) if problem.name not in report.finished]
    for number, problem in enumerate(problems, 1):
        if time.monotonic() > end:
            report.notes.append(f"{problem.name}: {options.limit:.0f} seconds were over")
            continue
        print(f"{number} of {len(problems)}: {problem.name}", file=sys.stderr, flush=True)
        report.begun = problem.name
        report.write(stem)  # what this problem ends, a crash or the clock, keeps what was measured
        try:
            with ended_after(options.hang, problem.name):
                measure_what_fits(problem, chosen_names(options, problem), rates, options.seconds, report)
        except DeviceLost as error:
            print(f"the GPU is lost to this process: {error}", file=sys.stderr)
            report.wrong.append(f"{problem.name}: {error}")
            report.begun = None
            report.finished.append(problem.name)
            report.write(stem)
            return DEVICE_LOST
        report.begun = None
        report.finished.append(problem.name)

    print(report.markdown())
    for path in report.write(stem):
        print(f"wrote {path}")
    measured = len({row.problem for row in report.rows})
    print(f"{measured} problems measured, {len(report.wrong)} wrong, {len(report.notes)} notes")
    return 1 if report.wrong else 0


def file_stem(report: Report, options: argparse.Namespace) -> str:
    """A name by every condition; parts of the table never overwrite the whole."""
    facts = report.conditions
    parts = [facts["device"], facts["dtype"], f"torch{facts['torch']}", facts["date"]]
    parts += [] if tuple(options.only) == SECTIONS else options.only
    parts += [options.label] if options.label else []
    parts += ["quick"] if options.quick else []
    return "-".join(re.sub(r"[^A-Za-z0-9.-]+", "_", part).strip("_") for part in parts)


def parse_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    def sections(text: str) -> list[str]:
        names = text.split(",")
        for name in names:
            if name not in SECTIONS:
                raise argparse.ArgumentTypeError(f"expected some of {', '.join(SECTIONS)}, got {name!r}")
        return names

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=sections, default=list(SECTIONS), help="sections, with commas")
    parser.add_argument("--match", type=re.compile, help="regular expression that a problem's name must have")
    parser.add_argument("--leave-out", type=re.compile, help="regular expression that it must not have")
    parser.add_argument("--batch", type=int, help="of networks, in place of the table's")
    parser.add_argument("--quick", action="store_true", help="one small problem per section, without torch.compile")
    parser.add_argument("--output", type=Path, default=ROOT / "bench" / "results", help="folder to write to")
    parser.add_argument("--label", help="added to the names of the files")
    parser.add_argument("--resume", action="store_true", help="go on with the files that an earlier process left")
    parser.add_argument("--device", choices=("cuda", "cpu"), default=machine.default_device())
    parser.add_argument("--seconds", type=float, default=None, help="time to spend timing one problem, about")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, help="whether to time torch.compile")
    parser.add_argument(
        "--compile-alone", dest="compile", action="store_const", const="alone", help="ours and torch.compile, no others"
    )
    parser.add_argument("--compile-mode", help=f"of networks, by default {machine.COMPILE_MODES}")
    parser.add_argument("--threads", type=int, default=None, help="of a CPU; with 1 the time is that of the thread")
    parser.add_argument("--limit", type=float, default=math.inf, help="seconds after which no problem is begun")
    parser.add_argument("--hang", type=float, default=math.inf, help="seconds after which a problem ends the process")
    options = parser.parse_args(arguments)
    if options.compile is None:
        options.compile = not options.quick
    if options.seconds is None:
        options.seconds = 0.5 if options.quick else 4.0
    return options


if __name__ == "__main__":
    sys.exit(main())
