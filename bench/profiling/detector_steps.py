# SPDX-License-Identifier: MIT
"""Time of a detector's step by part, and its speed on our backbone beside the backbone's plain twin.

    python -m bench.profiling.detector_steps                        three detectors at 320 pixels, printed as Markdown
    python -m bench.profiling.detector_steps --detectors retinanet --threads 1
    python -m bench.profiling.detector_steps --output bench/results/profiles/detectors.md

Parts are timed operator by operator, without what runs between them; the quickest of some steps. Ratios are of medians
of whole steps that alternate in one process.
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from bench import machine
from bench.names import EAGER, OURS
from bench.problems.detectors import DETECTORS, DetectorProblem
from bench.profiling.network_parts import Places
from bench.profiling.operator_costs import name as operator_name
from bench.timing import Contender, cpu_clock, measure

# The first that begins the path of a module, without what wraps the network, says the part. The network itself, which
# `Places` calls "head", has losses and what follows the heads.
_PARTS = (
    ("backbone.features", "backbone"), ("backbone.fpn", "pyramid"), ("head.", "heads"), ("rpn.head", "heads"),
    ("roi_heads.box_roi_pool", "RoIAlign"), ("roi_heads.mask_roi_pool", "RoIAlign"), ("roi_heads.box", "box head"),
    ("roi_heads.mask", "mask head"), ("anchor_generator", "anchors"), ("rpn.anchor_generator", "anchors"),
    ("transform", "padding"), ("model.backbone", "backbone"), ("model.encoder", "encoder"),
    ("model.decoder", "decoder"), ("model.input_proj", "pyramid"), ("bbox_embed", "heads"), ("class_embed", "heads"),
)  # fmt: skip


class PartClock(TorchDispatchMode):
    """Seconds by (part, forward or backward) of what runs inside of it."""

    def __init__(self, places: Places) -> None:
        super().__init__()
        self.places = places
        self.seconds: dict[tuple[str, str], float] = defaultdict(float)

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        start = cpu_clock()
        result = function(*arguments, **(keywords or {}))
        self.seconds[part_of(*self.places.running(), operator_name(function))] += cpu_clock() - start
        return result


def part_of(path: str, direction: str, operator: str) -> tuple[str, str]:
    """The part that the module at `path` belongs to, with the direction; some operators are parts of their own."""
    if direction == "optimizer":
        return "AdamW", "backward"
    if operator == "nms":
        return "suppression", direction
    if operator.startswith("deformable_attention"):
        return "sampling", direction
    path = path.removeprefix("network.")
    part = next((part for start, part in _PARTS if path.startswith(start)), "matching and losses")
    return part, direction


def part_seconds(step: Callable[[], object], network: nn.Module, repeats: int) -> dict[tuple[str, str], float]:
    """Seconds by part and direction, of each the quickest of `repeats` steps; one more goes before them."""
    step()
    runs = []
    for _ in range(repeats):
        places = Places(network)
        with places.watching(), PartClock(places) as clock:
            step()
        runs.append(clock.seconds)
    return {key: min(run[key] for run in runs) for key in runs[0]}


def report(problems: Sequence[DetectorProblem], seconds: float, repeats: int) -> Iterator[str]:
    """Markdown, as it comes."""
    yield "# Detectors on container_light and on its plain twin\n"
    yield "".join(f"- {name}: {value}\n" for name, value in machine.conditions("cpu").items())
    yield "| | ours, ms | plain, ms | plain / ours | noise |\n| --- | ---: | ---: | ---: | ---: |"
    parts = []
    for problem in problems:
        networks = {name: problem.network(name) for name in (OURS, EAGER)}
        calls = {name: problem.calls(network) for name, network in networks.items()}
        measured = measure({name: Contender(lambda _, f=f: f(), [None]) for name, f in calls.items()}, "cpu", seconds)
        ours, plain = measured.milliseconds[OURS], measured.milliseconds[EAGER]
        yield f"| {problem.name} | {ours:.0f} | {plain:.0f} | {plain / ours:.2f} | {100 * measured.noise:.0f} % |"
        if problem.training:
            parts.append((problem, part_seconds(calls[OURS], networks[OURS], repeats)))
    for problem, spent in parts:
        whole = sum(spent.values())
        yield f"\n## {problem.name}: operators of ours, {1e3 * whole:.0f} ms\n"
        yield "| part | forward | backward |\n| --- | ---: | ---: |"
        names = sorted(
            {part for part, _ in spent}, key=lambda part: -sum(t for (p, _), t in spent.items() if p == part)
        )
        for name in names:
            share = [100 * spent.get((name, direction), 0.0) / whole for direction in ("forward", "backward")]
            share[0] += 100 * spent.get((name, ""), 0.0) / whole
            yield f"| {name} | {share[0]:.1f} % | {share[1]:.1f} % |"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--detectors", nargs="+", choices=DETECTORS, default=DETECTORS, help="which")
    parser.add_argument("--batch", type=int, default=2, help="images")
    parser.add_argument("--side", type=int, default=320, help="pixels")
    parser.add_argument("--threads", type=int, default=None, help="of a CPU")
    parser.add_argument("--seconds", type=float, default=30.0, help="for the ratio of each row, about")
    parser.add_argument("--repeats", type=int, default=3, help="steps to take the quickest of, for the parts")
    parser.add_argument("--output", type=Path, help="file to keep the tables in")
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    problems = [
        DetectorProblem(detector, training, options.batch, options.side)
        for detector in options.detectors
        for training in (False, True)
    ]
    lines = []
    for line in report(problems, options.seconds, options.repeats):
        print(line, flush=True)
        lines.append(line)
    if options.output:
        options.output.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
