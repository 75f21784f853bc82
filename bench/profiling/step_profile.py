# SPDX-License-Identifier: MIT
"""Bytes, kernels and time of a step, by stage and part of the network; ours beside plain PyTorch.

    python -m bench.profiling.step_profile                            counts, on any machine: nothing is computed
    python -m bench.profiling.step_profile --time                     also times every operator on the machine at hand
    python -m bench.profiling.step_profile --models container_light   one network
    python -m bench.profiling.step_profile --output profile.json      keeps the result
    python -m bench.profiling.step_profile --compare one.json two.json   two kept results side by side

bench/results/profiles/before.json is the library of commit 13ffbd8, with nothing fused but the aggregation.

Counted is a step on a simulated GPU: batch 128 under autocast to bfloat16, on fake tensors. An
operator is a kernel that reads its tensors once and writes its results once (`operator_costs`), and its predicted time
is max(bytes / bandwidth, FLOPs / rate) of an H100: a prediction that no launch gap and no slow kernel lengthens. Timed
is a step on the machine at hand, on a CPU in float32 with a smaller batch, each operator by the quickest of some steps.

Memory: bytes alive beyond parameters, optimizer state and image, at the peak and from forward to backward; what a
kernel allocates inside does not show. Synchronizations: operators that make the host wait for the device. Stochastic
depth is off, as in the table.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from bench import machine, roofline
from bench.names import EAGER, NOT_FUSED, OURS
from bench.problems.networks import DEPTHS, ModelProblem
from bench.problems.sections import MODELS
from bench.profiling.network_parts import PARTS
from bench.profiling.simulated_gpu import SimulatedProblem, simulated_gpu
from bench.profiling.step_recorder import Operator, record_step, time_operators
from bench.timing import fastest_seconds

SIMULATED = "NVIDIA H100 80GB HBM3"


@dataclass
class Row:
    """One part of one stage in one direction. Predicted: on an H100, milliseconds; measured: None where not timed."""

    stage: str
    part: str
    direction: str
    kernels: int = 0
    bytes: int = 0
    flops: int = 0
    copies: int = 0
    predicted_ms: float = 0.0
    measured_ms: float | None = None


@dataclass
class Profile:
    """One step of one network. `step_ms`: the quickest whole step without the profile, where it was timed."""

    label: str
    model: str
    training: bool
    device: str
    dtype: str
    batch: int
    rows: list[Row]
    peak_bytes: int
    kept_bytes: int
    synchronizations: int
    step_ms: float | None = None

    @property
    def problem(self) -> str:
        what = "training step" if self.training else "inference"
        return f"{self.model} {what}, batch {self.batch}, {self.dtype}, {self.device}"


def counted(problem: SimulatedProblem, name: str, label: str) -> Profile:
    """A step on a simulated H100; nothing is computed."""
    network = problem.network(name)
    with simulated_gpu() as mode:
        network._apply(mode.from_tensor)
        step = record_step(problem.calls(network, network), network)
    return _profile(problem, label, f"{SIMULATED}, described", step, None)


def timed(problem: ModelProblem, name: str, label: str, repeats: int) -> Profile:
    """A step on the machine at hand, and how long each part of it takes."""
    network = problem.network(name)
    calls = problem.calls(network, network)
    calls()  # allocates the optimizer's state
    step = record_step(calls, network)
    milliseconds = time_operators(calls, network, problem.device, repeats)
    profile = _profile(problem, label, machine.device_name(problem.device), step, milliseconds)
    profile.step_ms = 1e3 * fastest_seconds(calls, problem.device, repeats)
    return profile


def _profile(problem: ModelProblem, label: str, device: str, step, milliseconds: Sequence[float] | None) -> Profile:
    dtype = str(problem.dtype).removeprefix("torch.")
    rows = list(_rows(step.operators, milliseconds))
    return Profile(
        label, problem.model, problem.training, device, dtype, problem.batch, rows, step.peak_bytes, step.kept_bytes,
        step.synchronizations,
    )  # fmt: skip


def _rows(operators: Sequence[Operator], milliseconds: Sequence[float] | None) -> Iterator[Row]:
    rates = roofline.DEVICES[SIMULATED]
    rows: dict[tuple, Row] = {}
    for number, operator in enumerate(operators):
        row = rows.setdefault(operator.place, Row(*operator.place))
        row.kernels += operator.cost.kernels
        row.bytes += operator.cost.bytes
        row.flops += operator.cost.flops
        row.copies += operator.cost.copies
        row.predicted_ms += rates.floor_ms([operator.cost])
        if milliseconds is not None:
            row.measured_ms = (row.measured_ms or 0.0) + milliseconds[number]
    yield from sorted(rows.values(), key=lambda row: (row.stage, PARTS.index(row.part), row.direction))


def markdown(report: dict) -> str:
    """All profiles of a report, or of two: one table a problem, a group of columns a network."""
    parts = ["# Where a step spends its bytes and time"]
    for title, conditions in report["conditions"].items():
        parts.append(f"{title}:\n\n" + "\n".join(f"- {name}: {value}" for name, value in conditions.items()))
    problems: dict[str, list[Profile]] = {}
    for profile in report["profiles"]:
        problems.setdefault(profile.problem, []).append(profile)
    for problem, profiles in problems.items():
        parts += [f"## {problem}", _parts_table(profiles), _blocks_table(profiles)]
    parts.append(
        f"Predicted: max(bytes / bandwidth, FLOPs / rate) of every operator, {roofline.DEVICES[SIMULATED].source}."
    )
    return "\n\n".join(parts) + "\n"


def _parts_table(profiles: Sequence[Profile]) -> str:
    """By stage and part, forward and backward together; the last rows are of the whole step."""
    sums = [_summed(profile.rows, lambda row: (row.stage, row.part)) for profile in profiles]
    whole = [_summed(profile.rows, lambda row: ())[()] for profile in profiles]
    # What is counted for an H100 in bfloat16 says nothing about a CPU's time, and the other way round.
    milliseconds = "predicted_ms" if profiles[0].step_ms is None else "measured_ms"
    columns = ["kernels", "copies", "MB", "GFLOP", milliseconds.replace("_", " "), "%"]
    head = ["stage", "part"]
    for profile in profiles:
        head += [f"{profile.label}: {columns[0]}", *columns[1:]]

    def cells(row: Row | None, total: Row) -> list[str]:
        if row is None:
            return ["-"] * len(columns)
        spent, whole = getattr(row, milliseconds), getattr(total, milliseconds)
        numbers = [f"{row.kernels}", f"{row.copies}", f"{row.bytes / 1e6:.0f}", f"{row.flops / 1e9:.1f}"]
        return [*numbers, f"{spent:.3g}", f"{100 * spent / whole:.1f}"]

    keys = sorted({key for rows in sums for key in rows}, key=lambda key: (key[0], PARTS.index(key[1])))
    body = [[*key, *(c for rows, t in zip(sums, whole, strict=True) for c in cells(rows.get(key), t))] for key in keys]
    body.append(["all", "", *(cell for total in whole for cell in cells(total, total))])
    facts = [_facts(profile) for profile in profiles]
    return _markdown_table([head, *body]) + "\n\n" + "\n".join(facts)


def _facts(profile: Profile) -> str:
    facts = f"- {profile.label}: peak {profile.peak_bytes / 1e6:.0f} MB, kept from forward to backward "
    facts += f"{profile.kept_bytes / 1e6:.0f} MB, {profile.synchronizations} synchronizations"
    if profile.step_ms is not None:
        facts += f"; the whole step without the profile {profile.step_ms:.1f} ms"
    return facts


def _blocks_table(profiles: Sequence[Profile]) -> str:
    """Kernels and bytes of one block of each stage."""
    head = ["one block of", *(f"{p.label}: {column}" for p in profiles for column in ("kernels", "MB"))]
    lines = [head]
    for stage, depth in enumerate(DEPTHS, 1):
        line = [f"stage {stage}"]
        for profile in profiles:
            rows = [r for r in profile.rows if r.stage == f"stage {stage}" and r.part != "patch embedding"]
            line.append(f"{sum(r.kernels for r in rows) / depth:.0f}")
            line.append(f"{sum(r.bytes for r in rows) / depth / 1e6:.1f}")
        lines.append(line)
    return _markdown_table(lines)


def _summed(rows: Sequence[Row], key) -> dict[tuple, Row]:
    """Rows that have a key in common, added up."""
    sums: dict[tuple, Row] = {}
    for row in rows:
        total = sums.setdefault(key(row), Row(row.stage, row.part, "both"))
        for name in ("kernels", "bytes", "flops", "copies", "predicted_ms"):
            setattr(total, name, getattr(total, name) + getattr(row, name))
        if row.measured_ms is not None:
            total.measured_ms = (total.measured_ms or 0.0) + row.measured_ms
    return sums


def _markdown_table(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    head, *body = ["| " + " | ".join(c.rjust(w) for c, w in zip(line, widths, strict=True)) + " |" for line in lines]
    return "\n".join([head, "| " + " | ".join("-" * (w - 1) + ":" for w in widths) + " |", *body])


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_options(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.compare:
        report = {"conditions": {}, "profiles": []}
        for path in options.compare:
            one = load(path)
            report["conditions"] |= one["conditions"]
            report["profiles"] += one["profiles"]
    else:
        report = {"conditions": {options.label: machine.conditions(options.device)}, "profiles": []}
        for profile in profiles(options):
            report["profiles"].append(profile)
            if options.output:  # what the clock ends keeps what was measured
                save(report, options.output)
    print(markdown(report))
    if options.output:
        save(report, options.output)
        print(f"wrote {options.output}")
    return 0


def profiles(options: argparse.Namespace) -> Iterator[Profile]:
    """Every network asked for, inference and training step: counted, and timed where asked for."""
    end = time.monotonic() + options.limit
    for model, on_gpu, on_cpu, size in MODELS:
        for training in (False, True):
            if model not in options.models or time.monotonic() > end:
                continue
            names = {EAGER: EAGER, OURS: options.label}
            if not training:
                names[NOT_FUSED] = f"{options.label}, not fused"
            for name, label in names.items():
                yield counted(SimulatedProblem("cpu", training, model, on_gpu, size), name, label)
                if options.time:
                    batch = on_gpu if options.device == "cuda" else on_cpu
                    problem = ModelProblem(options.device, training, model, batch, size)
                    yield timed(problem, name, label, options.repeats)


def save(report: dict, path: Path) -> None:
    kept = {"conditions": report["conditions"], "profiles": [asdict(profile) for profile in report["profiles"]]}
    for profile in kept["profiles"]:
        profile["rows"] = [list(row.values()) for row in profile["rows"]]
    path.write_text(json.dumps(kept, ensure_ascii=False).replace("[[", "[\n[").replace("], [", "],\n[") + "\n", "utf-8")


def load(path: Path) -> dict:
    report = json.loads(path.read_text(encoding="utf-8"))
    report["profiles"] = [Profile(**p | {"rows": [Row(*row) for row in p["rows"]]}) for p in report["profiles"]]
    return report


def parse_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    models = [model for model, *_ in MODELS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--time", action="store_true", help="also time every operator on the machine at hand")
    parser.add_argument("--models", type=lambda text: text.split(","), default=models, help="names, with commas")
    parser.add_argument("--device", choices=("cuda", "cpu"), default=machine.default_device(), help="to time on")
    parser.add_argument("--threads", type=int, default=None, help="of a CPU")
    parser.add_argument("--repeats", type=int, default=10, help="steps to take the quickest of")
    parser.add_argument("--limit", type=float, default=math.inf, help="seconds after which no problem is begun")
    parser.add_argument("--label", default="ours", help="what to call our networks in tables and figures")
    parser.add_argument("--output", type=Path, help="JSON file to keep the result in")
    parser.add_argument("--compare", type=Path, nargs=2, metavar="JSON", help="two results to show side by side")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
