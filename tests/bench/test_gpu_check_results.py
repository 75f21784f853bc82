"""The summary of the GPU check: what it says of tests and tables, and that the end of an output holds it."""

import json
from types import SimpleNamespace

import pytest

from bench.gpu_check.results import Results
from bench.gpu_check.results import test_outcomes as outcomes_of
from bench.gpu_check.steps import OPS, Setting, steps
from bench.problems import sections
from bench.report.predictions import DEVICE


@pytest.fixture
def results(tmp_path):
    (tmp_path / "work").mkdir()
    return Results(1, tmp_path / "out", tmp_path / "work", "# head")


# As pytest -v prints with workers and without, and what it repeats at the end.
LOG = """\
tests/ops/fused_mlp/test_fused_mlp.py::test_matches_float64[triton-bfloat16-2x9-37-100-37-residual]
[gw3] [ 12%] PASSED tests/ops/fused_mlp/test_fused_mlp.py::test_matches_float64[triton-bfloat16-2x9-37-100-37-residual]
[gw1] [ 13%] FAILED tests/ops/fused_mlp/test_fused_mlp.py::test_matches_float64[triton-float16-2x9-37-100-37-residual]
[gw1] [ 14%] PASSED tests/ops/fused_mlp/test_fused_mlp.py::test_lost[triton]
[gw1] [ 14%] FAILED tests/ops/fused_mlp/test_fused_mlp.py::test_lost[triton]
[gw2] [ 15%] SKIPPED tests/ops/dispatch/test_tf32.py::test_mix[1x7x7-tf32-triton] (needs a CUDA device)
[gw2] [ 16%] PASSED tests/ops/dispatch/test_tf32.py::test_mlp[(20, 64, 128)-tf32-triton]
tests/ops/fold_norm/test_fold_norm.py::test_alone[two words] PASSED                 [ 17%]
=========================== short test summary info ============================
FAILED tests/ops/fused_mlp/test_fused_mlp.py::test_lost[triton] - AssertionError: out over the budget
"""


def test_outcomes_are_read_from_the_log_of_pytest(results):
    outcomes = outcomes_of(LOG)
    assert [name.split("::")[1].split("[")[0] for name in outcomes] == [
        "test_matches_float64", "test_matches_float64", "test_lost", "test_mix", "test_mlp", "test_alone",
    ]  # fmt: skip
    assert list(outcomes.values()) == ["PASSED", "FAILED", "FAILED", "SKIPPED", "PASSED", "PASSED"]
    results.log("tests-triton").write_text(LOG)
    summary = results.summary()
    passed = "any 1 of 2; bfloat16 1 of 1; float16 0 of 1; tf32 1 of 1, 1 skipped"
    assert f"tests-triton passed: {passed}" in summary
    assert summary.count("failed: tests/") == 2
    assert "NOT RUN" not in summary


@pytest.mark.parametrize(
    "head", ["collected 9 items", "collected 90 items / 81 deselected / 9 selected", "16 workers [9 items]"]
)
def test_tests_that_did_not_run_are_counted(results, head):
    """When their time is over the summary must not read as if there were no others."""
    results.log("tests-triton").write_text(f"{head}\n{LOG}")
    assert "tf32 1 of 1, 1 skipped; NOT RUN 3" in results.summary()


def test_a_long_list_of_failures_is_cut(results):
    lines = [f"[gw0] [  1%] FAILED tests/ops/test_x.py::test_y[{i}]" for i in range(40)]
    results.log("tests-cuda").write_text("\n".join(lines))
    assert results.summary().count("failed: tests/") == 8 and "and 32 more" in results.summary()


def table(problems, **more):
    """A table of every problem against all its baselines, with long times."""
    rows = []
    for problem in problems:
        for against in problem.baselines:
            row = {"problem": problem.name, "against": against, "ratio": 12.34, "met": False, "percent_of_floor": 88.8}
            row |= {"ours_ms": 0.7654, "theirs_ms": 9.8765, "floor_ms": 0.6543, "noise_percent": 12.34}
            rows.append({**row, "launched_ms": 0.7654, "images_per_second": None, "memory": None})
    return {"rows": rows, "notes": [], "wrong": [], "begun": None, **more}


def test_the_end_of_an_output_holds_the_summary(results):
    """12,000 characters: all problems of the first stage, and what is wrong as far as there is room."""
    problems = sections.all_problems("cuda", OPS)
    much = ["a note of what was not measured and why " * 9] * 200
    (results.work / "ops.json").write_text(json.dumps(table(problems, notes=much, wrong=much)))
    for step in steps(1, Setting(16, results.work)):
        results.log(step.name).write_text("a last line of some length " * 20)
        results.add(step, "out of time", 99.6, partial=True)
    for name in ("tests-cuda", "tests-triton"):
        failed = [f"[gw0] [  1%] FAILED tests/ops/test_x.py::test_y[{'long' * 30}-{i}]" for i in range(40)]
        results.log(name).write_text("\n".join(failed))
    summary = results.summary()
    assert len(summary) <= 11_500 and summary.endswith("\n… the archive has the rest\n")
    for op, count in (("mix", 12), ("depthwise", 24), ("mlp", 8), ("projection", 10), ("deform", 4)):
        assert summary.count(f"\n{op} ") == count
    assert summary.count("wrong: ") == 8 and summary.count("failed: ") == 8


def test_networks_and_ops_are_tables_of_their_own_and_predictions_are_named(results):
    mix = sections.all_problems("cuda", ["context_aggregation"])[:2]
    (results.work / "ops.json").write_text(json.dumps(table(mix)))
    row = {**table(mix)["rows"][0], "problem": "inference", "images_per_second": 640.0, "memory": 0.5}
    (results.work / "nets.json").write_text(json.dumps(table([], rows=[row], wrong=["inference: differs"])))
    (results.work / "half.json").write_text('{"rows": [')
    summary = results.summary()
    assert summary.count("\nproblem ") == 2 and "images/s" in summary and "inference: differs" in summary
    assert f"furthest from what is predicted for an {DEVICE}: mix fwd" in summary


def test_a_step_that_failed_is_one(results):
    step = SimpleNamespace(name="build", expected=40)
    results.add(step, "FAILED (1)", 3, partial=False)
    assert results.failed("build") and results.failures() == ["build"] and not results.failed("device")
