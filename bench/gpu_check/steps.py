# SPDX-License-Identifier: MIT
"""The steps of both stages of the GPU check: commands, expected seconds and limits, as data.

Expected seconds are for 16 cores and one H100, none measured on a GPU; what they are made of:

- A process that imports torch, timm and the package and makes a CUDA context: 10.
- The build: 216 seconds of processor time for one architecture, of which the longest file bounds 16 cores: 40.
- The tests of Triton's kernels: about 650 differently specialized kernels (311 were counted for the 265 tests of one
  dtype) at 1.3 seconds of processor time each, over 16 workers, which take 15 to begin: 70 to 95.
- A problem of an op whose kernels are compiled: 2.2 (inputs, check, graphs, 0.4 of timing); torch.compile: 2 more.

torch.compile has time for the rows with targets: the mix, depthwise 5×5, the MLP at ratio 8, container_light. A column
"comp" says "-" in the others.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# Exit status of a step that had nothing to run here; neither a result nor a failure.
NOT_RUN = 77
# The cores that expected seconds are for.
CORES = 16
# Seconds of each stage. One call may take 10 and 5 minutes, of which the way in and out needs some.
LIMITS = {1: 515, 2: 285}

# Seconds beside those of a step that is kept: ending the one before it, and looking for its end.
MARGIN = 2

# Sections of the first stage.
OPS = ("context_aggregation", "local_aggregation", "fused_mlp", "projection", "deformable_attention")
# What the tables begin with: the shapes of the targets. A regular expression on the problems' names.
WIDE = "5×5|ratio 8|deformable"

# Step -> what pytest selects by names and marks, and where, first things first.
TESTS = {
    "tests-cuda": ("(cuda or gpu) and not triton", ("tests/device", "tests/ops")),
    "tests-triton": ("triton", ("tests/ops",)),
}


@dataclass(frozen=True)
class Step:
    """One command of a stage.

    Args:
        expected: seconds on 16 cores and one H100.
        limit: seconds after which it is ended; less where the steps after it would starve.
        kept: whether the steps before it leave it its expected seconds.
        beside: begins together with the step before it.
        required: whether a failure ends the stage.
        attempts: processes that are started while they end by a crash; each goes on behind the last one.
        partial: whether what it did until its time was over counts; else that is a failure.
        threads: of OpenMP in each of its processes; None leaves the choice to them.
    """

    name: str
    what: str
    command: tuple[str, ...]
    expected: int
    limit: int
    kept: bool = False
    beside: bool = False
    required: bool = False
    attempts: int = 1
    partial: bool = False
    threads: int | None = None


@dataclass(frozen=True)
class Setting:
    """The place where a stage runs. `rehearsal`: on a machine without a GPU, with small problems and few tests."""

    cores: int
    work: Path
    rehearsal: bool = False


def steps(stage: int, setting: Setting) -> list[Step]:
    """The steps of a stage, in the order of what decides most."""
    return list({1: _first, 2: _second}[stage](setting))


def groups(stage_steps: list[Step]) -> list[list[Step]]:
    """Steps that run side by side, together."""
    grouped: list[list[Step]] = []
    for step in stage_steps:
        if step.beside and grouped:
            grouped[-1].append(step)
        else:
            grouped.append([step])
    return grouped


def expected_seconds(stage_steps: list[Step]) -> int:
    return sum(max(step.expected for step in group) for group in groups(stage_steps))


def time_for(step: Step, later: list[Step], left: float) -> float:
    """Seconds of those that are left that a step may take, so that each later one it is kept for has its own."""
    kept = [other for other in later if other.kept]
    return min(step.limit, left - expected_seconds(kept) - MARGIN * len(kept))


def _first(setting: Setting) -> Iterator[Step]:
    yield from _built(setting)
    yield _tests(setting, "tests-cuda", "the device's semantics, every CUDA C++ kernel in every dtype", 35, 80)
    yield _tests(setting, "tests-triton", "every Triton kernel in every dtype, TF32 among them", 95, 180)
    what = "the kernels of the tables, compiled side by side"
    yield _compiled(setting, "compile", what, ",".join(OPS), "mix|5×5", 40, 60)
    yield _table(setting, "context_aggregation", "context_aggregation", 40, 90, kept=True)
    yield _table(setting, "local_aggregation", "local_aggregation", 26, 60, "--match", WIDE, kept=True)
    yield _table(setting, "fused_mlp", "fused_mlp,deformable_attention", 30, 60, "--match", WIDE, kept=True)
    yield _table(setting, "rest", "fused_mlp,projection,local_aggregation", 76, 120, "--leave-out", WIDE)
    only = "context_aggregation,local_aggregation"
    yield _table(setting, "compiled", only, 85, 120, "--match", "mix|5×5", compile_alone=True)


def _second(setting: Setting) -> Iterator[Step]:
    yield from _built(setting)
    for tool in ("memcheck", "racecheck"):
        command = ("-m", "bench.gpu_check.sanitize", tool, "{work}")
        yield Step(tool, f"every CUDA C++ kernel under {tool}", command, 55, 75, beside=tool != "memcheck")
    # Beside the sanitizers, which share the GPU in slices of time: what is timed comes after them.
    what = "the networks' kernels, and what torch.compile makes of the released network"
    compiled = ("model,isotropic,fused_mlp", "ratio 8" if setting.rehearsal else "light|ratio 8")
    yield _compiled(setting, "compile", what, *compiled, 65, 75, "--match", "inference|step|ratio 8", beside=True)
    yield _table(setting, "light", "model", 24, 60, "--match", "light", kept=True, seconds=1.5)
    container = ("--leave-out", "light", "--batch", "64")
    yield _table(setting, "container", "model", 30, 60, *container, kept=True, seconds=1.5)
    # A processor takes minutes for what torch.compile does with a network.
    only = "fused_mlp" if setting.rehearsal else "model,fused_mlp"
    both = ("--match", "light|ratio 8")
    yield _table(setting, "compiled", only, 50, 80, *both, compile_alone=True, seconds=0.8)
    yield _table(setting, "isotropic", "isotropic", 25, 50, seconds=1.5)
    profile = ["-m", "bench.profiling.step_profile", "--models", "container_light", "--output", "{work}/profile.json"]
    profile += ["--repeats", "5", "--limit", "{soft}"] + ([] if setting.rehearsal else ["--time"])
    yield Step("profile", "where a step spends its time", tuple(profile), 20, 40, partial=True)


def _built(setting: Setting) -> Iterator[Step]:
    """The first steps of both stages: the second one may run on a fresh machine."""
    if not setting.rehearsal:
        command = ("setup.py", "--quiet", "build_ext", "--inplace")
        yield Step("build", "the extension, for this GPU's shipped architecture", command, 40, 120, required=True)
    command = ("-m", "bench.gpu_check.device", "--output", "{work}/device.json", *_device(setting))
    yield Step("device", "backends, the rates of a copy and a product", command, 12, 40, required=True)


def _device(setting: Setting) -> tuple[str, ...]:
    return ("--device", "cpu") if setting.rehearsal else ()


def _tests(setting: Setting, name: str, what: str, expected: int, limit: int) -> Step:
    arguments = pytest_arguments(name)
    if not setting.rehearsal:
        arguments += ["-n", str(setting.cores), "--max-worker-restart", "64"]
    elif name == "tests-cuda":
        what = f"only collects: {what}"
        arguments.append("--collect-only")
    else:
        what = f"one file of: {what}"
        arguments[-1] = "tests/ops/common/test_triton_tiles.py"
    return Step(name, what, ("-m", "pytest", *arguments), expected, limit, threads=1)


def pytest_arguments(name: str) -> list[str]:
    """Arguments that select the tests of a step, and say how they are reported."""
    selected, paths = TESTS[name]
    reported = ["-v", "--tb=short", "--durations=10", "-p", "no:cacheprovider", "-p", "bench.gpu_check.worker"]
    return [*reported, "-m", "not slow", "-k", selected, *paths]


def _compiled(
    setting: Setting, name: str, what: str, only: str, compiled: str, expected: int, limit: int, *options: str,
    beside: bool = False,
) -> Step:  # fmt: skip
    command = ["-m", "bench.gpu_check.precompile", "--only", only, "--compile", compiled, *options]
    command += ["--quick", "--device", "cpu", "--jobs", "1"] if setting.rehearsal else ["--jobs", str(setting.cores)]
    return Step(name, what, tuple(command), expected, limit, beside=beside, partial=True, threads=1)


def _table(
    setting: Setting, name: str, only: str, expected: int, limit: int, *options: str,
    kept: bool = False, compile_alone: bool = False, seconds: float = 0.4,
) -> Step:  # fmt: skip
    command = ["-m", "bench.table", "--only", only, "--label", name, *options, "--resume", "--output", "{work}"]
    # What a network takes to build, compile and check is no hang.
    hang = 60 if seconds == 0.4 else limit
    command += ["--limit", "{soft}", "--hang", str(hang), "--seconds", str(seconds)]
    command += ["--compile-alone", "--compile-mode", "default"] if compile_alone else ["--no-compile"]
    command += ["--quick", "--device", "cpu"] if setting.rehearsal else []
    what = f"{'ours against torch.compile' if compile_alone else 'times'}: {name}"
    return Step(f"times-{name}", what, tuple(command), expected, limit, kept=kept, attempts=4, partial=True)


def plan(stage: int, setting: Setting) -> str:
    """Steps of a stage, with seconds, and when they begin if all take what is expected."""
    stage_steps, now = steps(stage, setting), 0
    lines = [f"stage {stage}: {expected_seconds(stage_steps)} of {LIMITS[stage]} seconds expected"]
    lines.append(f"{'at':>5} {'expected':>9} {'limit':>6}  step")
    for group in groups(stage_steps):
        for step in group:
            at = "beside" if step.beside else f"{now}"
            mark = " (kept)" if step.kept else ""
            lines.append(f"{at:>6} {step.expected:>8} {step.limit:>6}  {step.name}: {step.what}{mark}")
            lines.append(f"{'':>24}{' '.join(map(_shown, (Path(sys.executable).name, *step.command)))}")
        now += max(step.expected for step in group)
    return "\n".join(lines)


def _shown(word: str) -> str:
    return f"'{word}'" if set(word) & set(" ()|*^") else word
