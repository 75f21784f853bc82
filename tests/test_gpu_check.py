"""bench/gpu_check.sh as far as a machine without a GPU can tell: it stops and says why; its table reads well."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _bench_importable(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "bench")


@pytest.mark.skipif(torch.cuda.is_available(), reason="it would run for minutes")
def test_needs_a_gpu(tmp_path):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", ROOT / "bench" / "gpu_check.sh", tmp_path],
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=120,
    )
    assert done.returncode == 1
    assert done.stderr.strip() == "gpu_check needs a CUDA device, torch sees none"
    assert not list(tmp_path.iterdir())


def row(problem, against, ratio, met, **times):
    return {"problem": problem, "against": against, "ratio": ratio, "met": met, "percent_of_floor": 71.6, **times}


def test_brief_table():
    import brief

    report = {
        "rows": [
            row("mix forward", "eager", 5.125, True, ours_ms=0.02, theirs_ms=0.1025),
            row("mix forward", "torch.compile of eager", 2.0, False, ours_ms=0.02, theirs_ms=0.04),
            row("mix forward", "ours on cuda", 1.0, None, ours_ms=0.02, theirs_ms=0.02),
            row("mix forward", "ours on triton", 1.5, None, ours_ms=0.02, theirs_ms=0.03),
            row("depthwise 3×3 forward", "eager (eager without cuDNN)", 3.0, None, ours_ms=0.5, theirs_ms=1.5),
        ],
        "notes": ["one: not measured"],
        "wrong": [],
    }
    head, *lines = (line.split() for line in brief.lines(report))
    assert head == [
        "problem",
        "ours",
        "µs",
        "%",
        "floor",
        "eager",
        "compiled",
        "attention",
        "cuda",
        "µs",
        "triton",
        "µs",
    ]
    assert lines[0] == ["mix", "forward", "20.0", "72", "5.12*", "2.00!", "-", "20.0", "30.0"]
    assert lines[1] == ["depthwise", "3×3", "forward", "500.0", "72", "3.00", "-", "-", "-", "-"]


def test_brief_reads_what_the_table_wrote():
    """The result files in the repository: every problem on a line of its own."""
    import brief

    for path in sorted((ROOT / "bench" / "results").glob("*.json")):
        report = json.loads(path.read_text(encoding="utf-8"))
        assert len(brief.lines(report)) == 1 + len({row["problem"] for row in report["rows"]})
