"""`bench.report.summary` and `bench.report.predictions`: one line per problem with everything that is known of it."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from bench import ROOT, roofline
from bench.gpu_check.steps import LIMITS, OPS, Setting, steps
from bench.problems import sections
from bench.report import predictions, summary
from bench.report.predictions import DEVICE, PREDICTIONS, predicted_us


def row(problem, against, ratio, met, **times):
    known = {"problem": problem, "against": against, "ratio": ratio, "met": met, "percent_of_floor": 71.6}
    return {**known, "floor_ms": 0.0143, "noise_percent": 1.26, **times}


def report(*rows, notes=(), wrong=(), **more):
    return {"rows": list(rows), "notes": list(notes), "wrong": list(wrong), **more}


MIX = "mix forward, 128×7×7, 512 channels, 16 heads"


@pytest.fixture
def reports():
    first = report(
        row(MIX, "eager", 5.125, True, ours_ms=0.02, theirs_ms=0.1025, launched_ms=0.055),
        row(MIX, "ours on cuda", 1.0, None, ours_ms=0.02, theirs_ms=0.02, launched_ms=0.055),
        row(MIX, "ours on triton", 1.5, None, ours_ms=0.02, theirs_ms=0.03, launched_ms=0.055),
        row("depthwise 3×3 forward", "eager (eager without cuDNN)", 3.0, None, ours_ms=0.5, theirs_ms=1.5),
        row("inference", "eager", 4.0, True, ours_ms=2, theirs_ms=8, images_per_second=64000, memory=0.312),
        row("inference", "ours, not fused", 1.1, None, ours_ms=2, theirs_ms=2.2, images_per_second=64000),
        notes=["one: not measured"],
    )
    compiled = report(row(MIX, "torch.compile of eager", 2.0, False, ours_ms=0.021, theirs_ms=0.042))
    return first, compiled


def test_a_line_has_everything_that_is_known(reports, monkeypatch):
    monkeypatch.setattr(predictions, "PREDICTIONS", {MIX: (16.0, "a guess")})
    head, *lines = (re.split(r"  +", line) for line in summary.lines(*reports))
    assert head == [
        "problem", "ours µs", "eager", "comp", "not fused", "floor", "%floor", "pred", "×pred", "noise%", "launch",
        "cuda", "triton", "images/s", "memory",
    ]  # fmt: skip
    mix = ["mix fwd 128×7×7 512 16h", "20.0", "5.12*", "2.00!", "-", "14.3", "72", "16", "1.25", "1.3"]
    assert lines[0] == [*mix, "55.0", "20.0", "30.0", "-", "-"]
    assert lines[1][:5] == ["depthwise 3×3 fwd", "500.0", "3.00", "-", "-"] and lines[1][7:9] == ["-", "-"]
    assert lines[2][-2:] == ["64000", "0.31"] and lines[2][4] == "1.10"
    assert summary.furthest_from_prediction(*reports) == ["mix fwd 128×7×7 512 16h: 1.25 times the prediction"]


def test_what_is_wrong_and_what_is_missing():
    ended = report(wrong=["mix: differs"], notes=["mlp: no time"], begun="depthwise")
    both = report(notes=["first"]), ended
    assert summary.wrong(*both) == ["mix: differs"]
    assert summary.notes(*both) == ["depthwise: begun and not ended", "first", "mlp: no time"]
    assert summary.lines(report()) == []


def test_summary_reads_what_the_table_wrote():
    """The result files in the repository: every problem on a line of its own."""
    for path in sorted((ROOT / "bench" / "results").glob("*.json")):
        written = json.loads(path.read_text(encoding="utf-8"))
        assert len(summary.lines(written)) == 1 + len({row["problem"] for row in written["rows"]})


@pytest.fixture
def measured():
    """The problems of both stages' tables, CONTAINER with the batch that it has there."""
    problems = sections.all_problems("cuda", (*OPS, "model", "isotropic"))
    (step,) = [step for stage in LIMITS for step in steps(stage, Setting(16, Path())) if step.name == "times-container"]
    batch = int(step.command[step.command.index("--batch") + 1])
    return [replace(p, batch=batch) if p.name.startswith("container ") else p for p in problems]


def test_every_problem_of_the_gpu_check_has_a_prediction(measured):
    assert sorted(PREDICTIONS) == sorted(problem.name for problem in measured)
    assert all(us > 0 and source for us, source in PREDICTIONS.values())


def test_a_prediction_is_not_below_its_floor(measured):
    """Both are for the same device."""
    rates = roofline.DEVICES[DEVICE]
    for problem in measured:
        assert predicted_us(problem.name) >= 1e3 * rates.floor_ms(problem.kernels), problem.name
