"""bench/gpu_check.sh as far as a machine without a GPU can tell: it stops and says why; its table reads well."""

import json
import os
import re
import shlex
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


# In place of python3: notes what it is asked to do, and does what the script builds on.
STAND_IN = """#!/bin/bash
[ "$1" = -c ] || echo "$*" >>"$LOG"
case "$1" in
    -m) echo "12 passed" ;;
    bench/table.py)
        while [ "$1" != --output ]; do shift; done
        mkdir -p "$2" && echo '{}' >"$2/table.json" && echo "wrote a table"
        exit "${TABLE_STATUS:-0}" ;;
    bench/brief.py) echo "brief of $2" ;;
    *) echo "did $1" ;;
esac
"""


@pytest.mark.skipif(Path("/usr/local/cuda/bin/compute-sanitizer").exists(), reason="it would run on the stand-in")
@pytest.mark.parametrize(("seconds", "table_status"), [(470, 0), (60, 0), (470, 1), (470, 124)])
def test_measures_within_its_time_and_goes_on_after_a_failure(tmp_path, seconds, table_status):
    """The script itself, on a machine whose Python does nothing."""
    python = tmp_path / "bin" / "python3"
    python.parent.mkdir()
    python.write_text(STAND_IN)
    python.chmod(0o755)
    log, out = tmp_path / "log", tmp_path / "a folder"
    variables = {"GPU_CHECK_SECONDS": seconds, "TABLE_STATUS": table_status, "LOG": log}
    done = subprocess.run(
        ["bash", ROOT / "bench" / "gpu_check.sh", out],
        env={"PATH": f"{python.parent}:/usr/bin:/bin"} | {name: str(value) for name, value in variables.items()},
        capture_output=True,
        text=True,
        timeout=120,
    )
    wrong, out_of_time = table_status == 1, table_status == 124
    assert done.returncode == wrong, done.stdout + done.stderr
    measured = [line.split() for line in log.read_text().splitlines() if "--limit" in line]
    sections = ["model", "mix,mlp,projection,depthwise", "container_light"] + ["model"] * (seconds > 90)
    assert [words[2] for words in measured] == sections
    limits = [int(words[words.index("--limit") + 1]) for words in measured]
    assert all(0 < limit <= seconds * 0.6 for limit in limits)
    assert ("no time left" in done.stdout) == (seconds <= 90)
    tables = 2 * (2 + (seconds > 90))  # each is noted, and once more in the summary
    assert done.stdout.count("FAILED (status 1): wrote a table") == wrong * tables
    assert done.stdout.count("out of time; what was measured is kept") == out_of_time * tables
    assert f"brief of {out}/table.json" in done.stdout
    assert (f"brief of {out}/compiled/table.json" in done.stdout) == (seconds > 90)


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
            row("inference", "eager", 4.0, True, ours_ms=2, theirs_ms=8, images_per_second=64000, memory=0.312),
            row("inference", "ours, not fused", 1.1, None, ours_ms=2, theirs_ms=2.2, images_per_second=64000),
        ],
        "notes": ["one: not measured"],
        "wrong": [],
    }
    head, *lines = (re.split(r"  +", line) for line in brief.lines(report))
    assert head == [
        "problem", "ours µs", "% floor", "eager", "compiled", "attention", "not fused", "cuda µs", "triton µs",
        "images/s", "memory",
    ]  # fmt: skip
    assert lines[0] == ["mix forward", "20.0", "72", "5.12*", "2.00!", "-", "-", "20.0", "30.0", "-", "-"]
    assert lines[1] == ["depthwise 3×3 forward", "500.0", "72", "3.00", "-", "-", "-", "-", "-", "-", "-"]
    assert lines[2] == ["inference", "2000.0", "72", "4.00*", "-", "-", "1.10", "-", "-", "64000", "0.31"]


def test_brief_reads_what_the_table_wrote():
    """The result files in the repository: every problem on a line of its own."""
    import brief

    for path in sorted((ROOT / "bench" / "results").glob("*.json")):
        report = json.loads(path.read_text(encoding="utf-8"))
        assert len(brief.lines(report)) == 1 + len({row["problem"] for row in report["rows"]})


def test_every_measurement_is_a_command_that_exists():
    """What the script measures with: its options are understood, sections and models are known."""
    import step_profile
    import table

    script = (ROOT / "bench" / "gpu_check.sh").read_text(encoding="utf-8").replace("\\\n", " ")
    commands = re.findall(r"^ *measure \"[^\"]+\" (\d+) [\w-]+ bench/(\w+)\.py (.*)$", script, re.MULTILINE)
    assert [name for _, name, _ in commands] == ["table", "table", "step_profile", "table"]
    parsers = {"table": table, "step_profile": step_profile}
    for share, name, options in commands:
        assert 0 < int(share) < 100
        parsers[name].parse_options([*shlex.split(options), "--limit", "10"])
