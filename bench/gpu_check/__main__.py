# SPDX-License-Identifier: MIT
"""Checks that need a GPU, in two stages that each fit one call on a bare machine.

    bash bench/gpu_check.sh 1 [FOLDER]     build, tests, times of the ops: under nine minutes
    bash bench/gpu_check.sh 2 [FOLDER]     sanitizers, networks, memory, torch.compile: under five minutes
    bash bench/gpu_check.sh --plan         what each stage would do, with seconds; runs nothing
    bash bench/gpu_check.sh 1 --rehearse   the same on a machine without a GPU, with small problems and few tests
    bash bench/gpu_check.sh 1 --steps device,times-fused_mlp

Needs torch >= 2.11, nvcc, pytest with pytest-xdist and pytest-benchmark, and an NVIDIA GPU of compute capability 8.0 or
higher. Nothing is installed or fetched; the checkout is left with an extension for this GPU alone. The second stage
needs nothing of the first one.

FOLDER (by default build/gpu_check) gets results-1.tar.gz, logs and tables, and summary-1.md, which is printed last as
well. Both are written again as each step ends, and every ten seconds: a stop loses nothing. Status 1 when a check
failed.
"""

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from bench import ROOT
from bench.gpu_check import device
from bench.gpu_check.results import Results
from bench.gpu_check.runner import Runner, Stopped, stop_on_signals
from bench.gpu_check.steps import CORES, LIMITS, Setting, plan, steps
from builder.project import env

START = time.monotonic()

ARCHS = "CONTAINER_KERNELS_CUDA_ARCHS"


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_options(arguments)
    cores = len(os.sched_getaffinity(0))
    if options.plan:
        setting = Setting(CORES, Path("WORK"), options.rehearse)
        print("\n\n".join(plan(stage, setting) for stage in ([options.stage] if options.stage else LIMITS)))
        return 0
    gpu = {} if options.rehearse else device.gpu_facts()
    if not gpu and not options.rehearse:
        raise SystemExit("gpu_check needs an NVIDIA GPU, nvidia-smi shows none")
    if not options.rehearse and importlib.util.find_spec("xdist") is None:
        raise SystemExit("gpu_check needs pytest-xdist: pip install pytest-xdist")
    stop_on_signals()
    folder = (options.relative_to / options.folder).resolve()
    work = Path(tempfile.mkdtemp(prefix=f"gpu_check-{options.stage}-"))
    try:
        results = Results(options.stage, folder, work, head(options, gpu, cores))
        runner = Runner(Setting(cores, work, options.rehearse), results, options.seconds, variables(gpu), START)
        chosen = chosen_steps(options, runner.setting)
        status = 1
        try:
            status = 0 if runner.run(chosen) else 1
        except Stopped as stopped:
            status = stopped.code
        print(f"\n{results.summary()}", flush=True)
        return status
    finally:
        shutil.rmtree(work, ignore_errors=True)


def chosen_steps(options: argparse.Namespace, setting: Setting) -> list:
    every = steps(options.stage, setting)
    if options.steps is None:
        return every
    names = [step.name for step in every]
    unknown = [name for name in options.steps if name not in names]
    if unknown:
        raise SystemExit(f"--steps: expected some of {', '.join(names)}, got {', '.join(unknown)}")
    return [step for step in every if step.name in options.steps]


def variables(gpu: dict[str, str]) -> dict[str, str]:
    """Environment of every step: this checkout's package, the extension that an install would run on this GPU."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    named = {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "CONTAINER_KERNELS_REQUIRE_EXT": "1"}
    if gpu and not os.environ.get(ARCHS):
        named[ARCHS] = device.shipped_arch(gpu["compute_cap"], env.value(ARCHS))
    return named


def head(options: argparse.Namespace, gpu: dict[str, str], cores: int) -> str:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    where = ", ".join(gpu.values()) if gpu else "rehearsal without a GPU"
    told = commit.stdout.strip() or "no git"
    return f"# GPU check, stage {options.stage}\n{where}; {cores} cores; commit {told}; {time.strftime('%Y-%m-%d')}"


def folder(text: str) -> Path:
    """Refuses "", as of a variable that is not set: the current folder is not meant."""
    if not text:
        raise argparse.ArgumentTypeError("expected a folder, got nothing")
    return Path(text)


def parse_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "gpu_check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stage", type=int, nargs="?", choices=tuple(LIMITS), help="of the check")
    parser.add_argument("folder", type=folder, nargs="?", default=ROOT / "build" / "gpu_check", help="for the results")
    parser.add_argument(
        "--relative-to", type=Path, default=Path(), help="folder that FOLDER is in, if not an absolute one"
    )
    parser.add_argument("--plan", action="store_true", help="print what would be done, and do nothing")
    parser.add_argument("--rehearse", action="store_true", help="do it without a GPU, on small problems")
    parser.add_argument("--steps", type=lambda text: text.split(","), help="names, with commas; by default all")
    parser.add_argument("--seconds", type=float, help=f"of all steps together; by default {LIMITS}")
    options = parser.parse_args(arguments)
    if options.stage is None and not options.plan:
        parser.error("a stage is needed, 1 or 2")
    if options.seconds is None:
        options.seconds = LIMITS.get(options.stage)
    return options


if __name__ == "__main__":
    sys.exit(main())
