"""bench/gpu_check.sh as far as a machine without a GPU can tell.

What it would do fits, selects and measures everything; a rehearsal does all of it on small problems.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import pytest
from bench_programs import run

from bench import ROOT, table
from bench.gpu_check import device, precompile
from bench.gpu_check.steps import (
    LIMITS,
    OPS,
    TESTS,
    Setting,
    expected_seconds,
    groups,
    pytest_arguments,
    steps,
    time_for,
)  # fmt: skip
from bench.names import COMPILED, NOT_FUSED, OURS
from bench.problems import sections
from bench.problems.problem import contender_names
from bench.profiling import step_profile
from bench.targets import GPU

DOOR = ROOT / "bench" / "gpu_check.sh"
PROGRAM = ("-m", "bench.gpu_check")


def stages(rehearsal=False):
    return {stage: steps(stage, Setting(16, Path("work"), rehearsal)) for stage in LIMITS}


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="it would run for minutes")
def test_needs_a_gpu(tmp_path):
    """Through the door, from another folder."""
    done = subprocess.run(["bash", DOOR, "1", tmp_path / "out"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.strip() == "gpu_check needs an NVIDIA GPU, nvidia-smi shows none"
    assert not list(tmp_path.iterdir())


def test_begins_where_there_is_a_gpu(tmp_path):
    """With an nvidia-smi that tells of an H100, through everything in front of the first step."""
    fake = tmp_path / "nvidia-smi"
    fake.write_text("#!/bin/sh\necho 'NVIDIA H100 80GB HBM3, 9.0, 81559 MiB, 570.1, 1980 MHz, 1980 MHz, 30'\n")
    fake.chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    command = (*PROGRAM, "1", tmp_path / "out", "--steps", "device", "--seconds", "1")
    done = run(*command, env=os.environ | {"PATH": path})
    assert done.returncode == 1, done.stdout + done.stderr
    assert "NVIDIA H100 80GB HBM3, 9.0" in done.stdout and "no time left" in done.stdout


def test_the_plan_prints_and_runs_nothing(tmp_path):
    done = run(*PROGRAM, "--plan", env={"PATH": "/nowhere"})
    assert done.returncode == 0, done.stderr
    for stage, stage_steps in stages().items():
        assert f"stage {stage}: " in done.stdout
        assert all(f" {step.name}: {step.what}" in done.stdout for step in stage_steps)
    for command in ("-m pytest", "-n 16", "-m bench.table --only context_aggregation"):
        assert command in done.stdout


@pytest.mark.parametrize(("stage", "call"), [(1, 540), (2, 300)])
def test_each_stage_fits_its_call(stage, call):
    steps = stages()[stage]
    assert LIMITS[stage] <= call - 15  # what comes before and after
    assert expected_seconds(steps) <= 0.94 * LIMITS[stage]
    assert all(step.expected <= step.limit for step in steps)


@pytest.mark.parametrize("stage", [1, 2])
def test_what_decides_most_starves_whatever_the_steps_before_take(stage):
    later, left = stages()[stage], LIMITS[stage]
    for group in groups(later):
        later = later[len(group) :]
        seconds = max(time_for(step, later, left) for step in group)
        assert not group[0].kept or seconds >= group[0].expected, group[0].name
        left -= max(seconds, 0)


def test_every_command_is_one_that_exists():
    """Options are understood, sections and models known, regular expressions compile."""
    parsers = {module.__name__: module for module in (table, step_profile, precompile, device)}
    seen = set()
    for rehearsal in (False, True):
        for step in (step for stage_steps in stages(rehearsal).values() for step in stage_steps):
            program, *options = (word.replace("{soft}", "10").replace("{work}", "work") for word in step.command)
            if program == "-m":
                program, *options = options
                assert find_spec(program)
            else:
                assert (ROOT / program).is_file()
            if program in parsers:
                parsers[program].parse_options(options)
            seen.add(program)
    assert seen == {*parsers, "setup.py", "pytest", "bench.gpu_check.sanitize"}


def tables(stage):
    """(options, problems) of each table step of a stage, in order, as on a GPU; networks of the batch of the table."""
    for step in stages()[stage]:
        if step.name.startswith("times-"):
            words = [word.replace("{soft}", "10") for word in step.command[2:]]
            options = table.parse_options([*words, "--device", "cuda"])
            options.batch = None
            yield options, table.chosen_problems(options)


def measured_by(stage, *, compile_alone):
    """Names of problems by table step."""
    chosen = [problems for options, problems in tables(stage) if (options.compile == "alone") == compile_alone]
    return [[problem.name for problem in problems] for problems in chosen]


def test_every_problem_is_measured_once_and_what_decides_most_first():
    mix, wide, others, rest = measured_by(1, compile_alone=False)
    assert len(mix) == 12 and len(wide) == 8 and all("5×5" in name for name in wide)
    mlp, deformable = others[:4], others[4:]
    assert all("64 channels" in name or "128 channels" in name for name in mlp)
    assert len(deformable) == 4 and all("deformable" in name for name in deformable)
    assert set(sections.SECTIONS) == {*OPS, "block", "model", "isotropic"}
    ops = sections.all_problems("cuda", OPS)
    assert Counter([*mix, *wide, *others, *rest]) == Counter(problem.name for problem in ops)
    networks = sections.all_problems("cuda", ("model", "isotropic"))
    light, container, isotropic = measured_by(2, compile_alone=False)
    assert Counter([*light, *container, *isotropic]) == Counter(problem.name for problem in networks)
    assert all(name.startswith("container_light") for name in light) and len(light) == len(container) == 2


def test_what_has_a_target_against_torch_compile_is_compiled():
    compiled = {name for stage in (1, 2) for names in measured_by(stage, compile_alone=True) for name in names}
    for problem in sections.all_problems("cuda"):
        # The baseline of CONTAINER keeps N×N matrices: compiling it takes longer than a stage has.
        if (problem.kind, "torch.compile of eager") in GPU and not problem.kind.startswith("container "):
            assert problem.name in compiled
    assert sum("ratio 8" in name for name in compiled) == 4


def test_compilers_are_warmed_for_what_is_timed():
    """Each contender of a table step is among the tasks of the step that compiles, by problem."""
    for stage, stage_steps in stages().items():
        (compiling,) = (step for step in stage_steps if step.command[1] == precompile.__name__)
        tasks = precompile.tasks(precompile.parse_options([*compiling.command[2:], "--device", "cuda"]))
        warmed = {(problem, name) for *_, problem, name in tasks}
        for options, problems in tables(stage):
            for problem in problems:
                names = {name for name in contender_names(problem) if name.startswith("ours on ") or name == NOT_FUSED}
                wanted = {OURS, COMPILED} if options.compile else {OURS, *names}
                assert {(problem.name, name) for name in wanted} <= warmed, problem.name


# Tests of a whole op against float64, by file; {backend: dtypes}.
HALF = {"float32", "float16", "bfloat16"}
WHOLE = {
    "test_context_aggregation_numerics": {"cuda": HALF, "triton": HALF},
    "test_local_aggregation": {"cuda": HALF, "triton": HALF},
    "test_local_aggregation_statistics": {"cuda": HALF, "triton": HALF},
    "test_deformable_attention": {"cuda": HALF, "triton": HALF},
    "test_projection": {"triton": HALF},
    "test_fused_mlp": {"triton": HALF},
    "test_fold_norm": {"triton": HALF},
    "test_statistics_gradient": {"triton": HALF},
}
# Files in tests/ops of which every test runs on a GPU.
ENTIRE = (
    "fused_mlp/test_fused_mlp_triton.py",
    "fused_mlp/test_fused_mlp_triton_gelu.py",
    "context_aggregation/test_context_aggregation_triton.py",
    "deformable_attention/test_deformable_attention_triton.py",
)


@pytest.fixture(scope="module")
def selected():
    """What each step of tests would run, as pytest says, and the tests of `ENTIRE`: in one process, which imports
    all of it once. It lacks what draws, exports and trains, as a bare machine does; so programs are imported too."""
    selections = {name: pytest_arguments(name) for name in TESTS}
    selections["entire"] = ["-m", "not slow", *(f"tests/ops/{file}" for file in ENTIRE)]
    left_out = ("-p", "bench.gpu_check.worker", "no:cacheprovider", "-v")
    code = f"""
import sys
for name in ("tqdm", "matplotlib", "sklearn", "onnx", "onnxruntime", "onnxscript", "pandas"):
    sys.modules[name] = None
from bench import table
from bench.gpu_check import __main__, device, precompile, sanitize
from bench.profiling import step_profile
import pytest
for name, arguments in {selections!r}.items():
    print("selection", name)
    arguments = [word for word in arguments if word not in {left_out!r}]
    code = pytest.main(["-p", "no:cacheprovider", "-q", "--collect-only", *arguments])
    if code:
        sys.exit(f"{{name}}: {{code}}")
"""
    done = run("-c", code)
    assert done.returncode == 0, done.stdout + done.stderr
    found, names = {}, None
    for line in done.stdout.splitlines():
        if line.startswith("selection "):
            names = found.setdefault(line.split()[1], [])
        elif "::" in line:
            names.append(line)
    assert found.keys() == selections.keys() and all(found.values())
    return found


def test_every_kernel_is_tested_in_every_dtype(selected):
    for file, backends in WHOLE.items():
        for backend, dtypes in backends.items():
            names = [n for n in selected[f"tests-{backend}"] if f"{file}.py::test_matches_float64[" in n]
            assert names, (file, backend)
            words = [set(re.split(r"[^a-z0-9]+", name)) for name in names]
            assert all(backend in word or file in ("test_fold_norm", "test_statistics_gradient") for word in words)
            assert {dtype for word in words for dtype in HALF & word} == dtypes, (file, backend)


def test_files_about_triton_kernels_are_selected_whole(selected):
    assert {name.partition("::")[0] for name in selected["entire"]} == {f"tests/ops/{file}" for file in ENTIRE}
    assert set(selected["entire"]) <= set(selected["tests-triton"])


def test_tf32_is_tested_for_every_op_that_multiplies(selected):
    tf32 = [name for name in selected["tests-triton"] if "tests/ops/dispatch/test_tf32.py::" in name]
    for op in ("mix", "mlp", "projection"):
        for precision in ("tf32", "ieee"):
            assert sum(f"::test_{op}[" in name and f"{precision}-" in name for name in tf32) >= 2


def test_what_only_a_gpu_shows_is_selected_and_nothing_twice(selected):
    everything = Counter(name for step in TESTS for name in selected[step])
    assert max(everything.values()) == 1
    for test in ("test_nvcc_half", "test_a_cuda_graph_replays_forward_and_backward", "test_automatic_choice_on_a_gpu"):
        assert any(f"::{test}" in name for name in everything), test
    graphs = [name for name in everything if "test_a_cuda_graph_replays" in name]
    assert len(graphs) == 2


def members(folder, stage):
    with tarfile.open(folder / f"results-{stage}.tar.gz") as archive:
        return {Path(name).name for name in archive.getnames()}


def rehearse(stage, folder, *more):
    """Through the door, from the folder above that for the results, without a GPU; those are two files."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", DOOR, str(stage), folder.name, "--rehearse", *more],
        cwd=folder.parent, env=os.environ | {"PATH": path}, capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert {path.name for path in folder.iterdir()} == {f"results-{stage}.tar.gz", f"summary-{stage}.md"}
    assert done.stdout.endswith((folder / f"summary-{stage}.md").read_text() + "\n")
    return done.stdout


def test_a_few_steps_rehearsed(tmp_path):
    """Real programs from the door to the archive; all of both stages under `-m slow`."""
    printed = rehearse(1, tmp_path / "one", "--steps", "device,tests-cuda,times-local_aggregation")
    assert re.search(r"tests-cuda +ok .* tests collected", printed)
    assert "depthwise 5×5 fwd 8×14×14 320" in printed.split("# GPU check")[1]
    logs = {f"{step}.log" for step in ("device", "tests-cuda", "times-local_aggregation")}
    assert logs | {"device.json", "steps.json", "summary.md"} <= members(tmp_path / "one", 1)


def test_a_step_that_does_not_exist_is_named(tmp_path):
    done = run(*PROGRAM, 2, tmp_path, "--rehearse", "--steps", "device,times-mixed")
    assert (
        done.returncode == 1
        and "expected some of device, memcheck, " in done.stderr
        and "got times-mixed" in done.stderr
    )


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2])
def test_a_whole_stage_rehearsed(tmp_path, stage):
    printed = rehearse(stage, tmp_path / "out")
    summary = printed.split("# GPU check")[1]
    for step in stages(rehearsal=True)[stage]:
        assert re.search(rf"^{step.name} +ok ", summary, re.MULTILINE), step.name
    shown = ["mix fwd", "mlp fwd", "projection fwd"] if stage == 1 else ["container_light inference", "deit_small"]
    assert all(text in summary for text in shown)


def test_a_stop_keeps_what_was_done(tmp_path):
    """As a clock stops it, in the middle of a step: results are there, nothing runs on, the status is a shell's."""
    work, out = tmp_path / "work", tmp_path / "out"
    work.mkdir()
    program = subprocess.Popen(
        [sys.executable, *PROGRAM, "1", out, "--rehearse", "--steps", "times-context_aggregation"],
        env=os.environ | {"TMPDIR": str(work)}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    first = program.stdout.readline()
    time.sleep(1)
    assert running_with(work) == 1
    program.send_signal(signal.SIGTERM)
    program.send_signal(signal.SIGTERM)  # as GNU timeout does, to its child and then to the group
    rest, _ = program.communicate(timeout=30)
    assert first.startswith("times-context_aggregation begins") and program.returncode == 143
    assert re.search(r"^times-context_aggregation +stopped ", rest, re.MULTILINE)
    assert {"times-context_aggregation.log", "steps.json", "summary.md"} <= members(out, 1)
    assert running_with(work) == 0 and not list(work.iterdir())


def test_an_empty_folder_is_refused():
    """As of a variable that is not set: results would be in the current folder."""
    done = run(*PROGRAM, "1", "", "--rehearse")
    assert done.returncode == 2 and "expected a folder, got nothing" in done.stderr


def running_with(folder):
    """Processes that have a folder in their command."""
    lines = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    return sum(str(folder).encode() in line for line in lines)
