"""How the GPU check runs its steps and keeps what they did, on steps of a few lines."""

import json
import subprocess
import tarfile
import time

import pytest

from bench import ROOT
from bench.gpu_check import runner
from bench.gpu_check.results import Results
from bench.gpu_check.steps import Setting, Step


@pytest.fixture
def stage(tmp_path, monkeypatch):
    """stage(*steps, limit=20) -> (whether nothing failed, results); steps may be short, and are asked early to end."""
    monkeypatch.setattr(runner, "GRACE", 1)
    monkeypatch.setattr(runner, "LEAST", 1.5)
    monkeypatch.setattr(runner, "KEPT_LEAST", 0.5)
    work = tmp_path / "work"
    work.mkdir()

    def run_stage(*steps, limit=20):
        results = Results(1, tmp_path / "out", work, "# head")
        one = runner.Runner(Setting(16, work), results, limit, {"GREETING": "hello"})
        return one.run(steps), results

    return run_stage


def step(name, code, *, expected=1, limit=10, **options):
    return Step(name, f"does {name}", ("-c", code), expected, limit, **options)


def states(results):
    return {record["step"]: record["state"] for record in results.steps}


def test_a_step_gets_its_environment_and_its_folder(stage, tmp_path):
    code = "import os, sys; print(os.environ['GREETING'], os.environ['OMP_NUM_THREADS'], os.getcwd(), sys.argv[1:])"
    words = step("one", code, threads=1)
    passed, results = stage(words.__class__(**{**vars(words), "command": (*words.command, "{work}/x", "a{2}")}))
    assert passed and states(results) == {"one": "ok"}
    assert results.steps[0]["last line"] == f"hello 1 {ROOT} ['{tmp_path / 'work'}/x', 'a{{2}}']"


def test_a_failure_is_a_failure_and_the_rest_goes_on(stage):
    passed, results = stage(step("one", "raise SystemExit(1)"), step("two", "print('done')"))
    assert not passed and states(results) == {"one": "FAILED (1)", "two": "ok"}
    passed, results = stage(step("one", "raise SystemExit(1)", required=True), step("two", "print('done')"))
    assert not passed and states(results) == {"one": "FAILED (1)"}


@pytest.mark.parametrize("partial", [True, False])
def test_a_step_is_asked_to_end_and_prints_what_it_has(stage, partial):
    code = "import time\ntry: time.sleep(60)\nexcept KeyboardInterrupt: print('3 failed')"
    begun = time.monotonic()
    passed, results = stage(step("one", code, limit=5, partial=partial), step("two", "print('done')"))
    assert time.monotonic() - begun < 15
    assert passed == partial and states(results) == {"one": "out of time", "two": "ok"}
    assert results.steps[0]["last line"] == "3 failed"


def test_a_step_that_does_not_listen_is_ended_with_all_it_began(stage):
    deaf = "import signal, subprocess, sys, time\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    code = f"{deaf}print(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']).pid, flush=True)\n"
    passed, results = stage(step("one", f"{code}time.sleep(60)", limit=3))
    assert not passed and states(results) == {"one": "out of time"}
    child = int(results.steps[0]["last line"])
    time.sleep(0.2)
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(child)], capture_output=True, text=True).stdout
    assert not state.strip() or state.startswith("Z")


def test_a_crash_is_followed_by_another_attempt(stage, tmp_path):
    """A process that ends by itself with 1 has a result; one that crashes may go on, as often as it is given."""
    crash = "import os, pathlib, sys\nlog = pathlib.Path(sys.argv[1])\nlog.write_text(log.read_text() + 'x')\n"
    for ending, attempts, tries, state in (
        ("os.abort() if len(log.read_text()) < 3 else print('rows')", 4, "xxx", "ok"),
        ("os.abort()", 2, "xx", "FAILED (-6)"),
        ("sys.exit(3)", 2, "xx", "FAILED (3)"),
        ("sys.exit(1)", 4, "x", "FAILED (1)"),
        ("sys.exit(77)", 4, "x", "NOT RUN"),
    ):
        log = tmp_path / "tries"
        log.write_text("")
        one = step("one", crash + ending, attempts=attempts)
        _, results = stage(one.__class__(**{**vars(one), "command": (*one.command, str(log))}))
        assert log.read_text() == tries and states(results) == {"one": state}


def test_steps_beside_each_other_run_at_once(stage):
    code = "import time; time.sleep(1.5)"
    begun = time.monotonic()
    passed, results = stage(step("one", code), step("two", code, beside=True), step("three", code, beside=True))
    assert passed and len(results.steps) == 3 and time.monotonic() - begun < 4


def test_time_is_kept_for_what_decides_most(stage):
    """The first step would take all; the second one has no time of its own, the third one is kept for."""
    passed, results = stage(
        step("tests", "import time; time.sleep(60)", partial=True),
        step("rest", "print('rest')", partial=True),
        step("mix", "import time; time.sleep(1)", expected=4, kept=True),
        limit=9,
    )
    assert passed and states(results) == {"tests": "out of time", "rest": "no time left", "mix": "ok"}


def test_a_step_that_is_kept_is_done_although_the_one_before_did_not_end_when_asked(stage):
    code = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(60)"
    passed, results = stage(
        step("tests", code, limit=60, partial=True), step("mix", "print('done')", expected=2, kept=True), limit=7
    )
    assert passed and states(results) == {"tests": "out of time", "mix": "ok"}


def test_no_time_for_a_step_that_is_kept_is_a_failure(stage):
    passed, results = stage(step("mix", "print('done')", kept=True, partial=True), limit=0.2)
    assert not passed and states(results) == {"mix": "no time left"}


def test_results_are_there_while_a_step_runs(stage, tmp_path, monkeypatch):
    """What kills the whole program in the middle of a step finds the archive with what it did so far."""
    monkeypatch.setattr(runner, "SAVE_EVERY", 0.1)
    look = f"""
import pathlib, sys, tarfile, time
print('half of it', flush=True)
archive = pathlib.Path({str(tmp_path / "out" / "results-1.tar.gz")!r})
for _ in range(100):
    time.sleep(0.1)
    try:
        with tarfile.open(archive) as file:
            if b'half of it' in file.extractfile('stage1/one.log').read():
                sys.exit(0)
    except (FileNotFoundError, KeyError):
        pass
sys.exit('nothing was kept')
"""
    passed, _ = stage(step("one", look))
    assert passed
    assert not [path for path in (tmp_path / "out").iterdir() if "partial" in path.name]


def test_the_archive_has_logs_and_tables_and_no_programs(stage, tmp_path):
    work = tmp_path / "work"
    code = "import pathlib, sys; [(pathlib.Path(sys.argv[1]) / n).write_text('1') for n in ('a.json', 'program')]"
    one = step("one", code)
    stage(one.__class__(**{**vars(one), "command": (*one.command, str(work))}))
    with tarfile.open(tmp_path / "out" / "results-1.tar.gz") as archive:
        names = {name.removeprefix("stage1/") for name in archive.getnames()}
        steps = json.loads(archive.extractfile("stage1/steps.json").read())
    assert names == {"a.json", "one.log", "steps.json", "summary.md"} and steps[0]["state"] == "ok"
