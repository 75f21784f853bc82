"""The GPU check's pytest plugin: a broken GPU costs one test, and what says most comes first."""

import re

import pytest
from bench_programs import run

from bench import ROOT
from bench.gpu_check import worker
from bench.gpu_check.results import test_outcomes as outcomes_of

TESTS = {
    "lost": (
        "def test_loses():\n    from bench.gpu_check import worker\n    worker.context_is_lost = lambda: True\n",
        r"worker '?gw\d'? crashed while running '?tests/test_it.py::test_loses",
    ),
    "hangs": (
        "def test_hangs():\n    import time\n    time.sleep(60)\n",
        r"worker '?gw\d'? crashed while running '?tests/test_it.py::test_hangs",
    ),
}


@pytest.mark.parametrize("what", TESTS)
def test_a_broken_gpu_costs_one_test(tmp_path, what):
    pytest.importorskip("xdist")

    code, message = TESTS[what]
    (tmp_path / "conftest.py").write_text("from bench.gpu_check import worker\nworker.SECONDS = 3\n")
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_it.py").write_text(f"def test_before(): pass\n{code}def test_after(): pass\n")
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    command = ["-m", "pytest", "-p", "bench.gpu_check.worker", "-p", "no:cacheprovider", "-n", "1", "-v", tmp_path]
    done = run(*command, f"--rootdir={tmp_path}", env=environment)
    printed = done.stdout + done.stderr
    # What a test lost after it had passed is counted as both, and the last outcome is the one that the summary takes.
    assert f"1 failed, {3 if what == 'lost' else 2} passed" in done.stdout, printed
    assert re.search(message, done.stdout), printed
    outcomes = {test.split("::")[1]: outcome for test, outcome in outcomes_of(done.stdout).items()}
    assert list(outcomes.values()) == ["PASSED", "FAILED", "PASSED"], outcomes
    assert ("the GPU is lost to this process" if what == "lost" else "Timeout (0:00:03)!") in printed


def test_comparisons_with_float64_come_first_and_the_processor_is_left_out(monkeypatch):
    from types import SimpleNamespace

    import container_kernels
    from container_kernels import _extension

    names = ["test_a", "test_matches_float64[x]", "test_b", "test_matches_float64[y]"]
    items = [SimpleNamespace(name=name) for name in names]
    monkeypatch.setattr(_extension, "load_cuda_emulator", _extension.load_cuda_emulator)
    for reason, left_out in (("no GPU", False), (None, True)):
        monkeypatch.setattr(container_kernels, "usable_backends", lambda reason=reason: {"cuda": reason})
        worker.pytest_collection_modifyitems(items)
        assert [item.name for item in items] == [names[1], names[3], names[0], names[2]]
        assert (_extension.load_cuda_emulator is worker._leave_out) == left_out
    with pytest.raises(pytest.skip.Exception, match="says nothing about the GPU"):
        _extension.load_cuda_emulator()
