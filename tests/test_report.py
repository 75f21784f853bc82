# SPDX-License-Identifier: MIT
"""`python -m container_kernels`, and what the package says about an extension that is not there."""

import subprocess
import sys
from importlib import metadata

import pytest
import torch

from container_kernels import __main__ as report
from container_kernels import _env, _extension
from container_kernels.ops.dispatch.backend import usable_backends
from container_kernels.ops.dispatch.preference import ROWS

COMPILED = {
    "built": True,
    "reason": None,
    "compiler": "g++",
    "compiler_version": "g++ 12.2.0",
    "flags": "-O3 -fopenmp",
    "link_flags": "-fopenmp",
    "openmp": True,
    "isa_levels": ["baseline", "v3"],
    "isa_levels_unknown_to_compiler": ["v4"],
    "ninja": True,
    "jobs": 2,
}
NO_CUDA = {"built": False, "reason": "no nvcc under CUDA_HOME", "nvcc": None}
CUDA = {
    "built": True,
    "reason": None,
    "nvcc": "/opt/cuda/bin/nvcc",
    "compiler_version": "nvcc 13.0, V13.0.88",
    "archs": "80+PTX;90a",
    "flags": "-O3 -gencode arch=compute_90a,code=sm_90a",
}


def record(cuda=NO_CUDA, **cpu):
    return {"python": _extension.SOABI, "cuda": cuda, "cpu": cpu}


def test_explains_a_network(capsys):
    report.main(["--model", "container_tiny"])
    assert capsys.readouterr().out.count("stages.") >= 2
    for name, what in (
        ("container_tinny", "the name of a network in timm"),
        ("resnet18", "resnet18 is of timm itself"),
    ):
        with pytest.raises(SystemExit, match=what):
            report.main(["--model", name])


@pytest.fixture
def import_blocked(monkeypatch):
    """The extension's imports fail."""
    for name in ("_C_cpu", "_C_cuda"):
        monkeypatch.delattr(f"container_kernels.{name}", raising=False)
        monkeypatch.setitem(sys.modules, f"container_kernels.{name}", None)


def test_report_names_versions_and_every_backend_and_variable():
    done = subprocess.run([sys.executable, "-m", "container_kernels"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = {line.split()[0]: line for line in done.stdout.splitlines() if line.startswith("  ")}
    for package in ("torch", "timm", "container_kernels"):
        assert metadata.version(package) in rows[package]
    for name, why in usable_backends().items():
        assert (why or "usable").splitlines()[0] in rows[name]
    assert set(_env.VARIABLES) <= set(rows)
    if _extension.cpu is not None:
        assert rows["ISA"].split()[-1] == _extension.cpu.isa()
    assert ("cuda:0" in rows) == torch.cuda.is_available()


def test_columns_are_aligned_also_in_further_lines():
    assert report._section("title", [("a", "one\ntwo"), ("longer", "three")]) == (
        "title\n  a       one\n          two\n  longer  three"
    )


def test_extension_rows_of_a_build():
    rows = dict(report._extension_rows(record(**COMPILED), cpu=None))
    assert rows["compiler"] == "g++: g++ 12.2.0"
    assert rows["OpenMP"] == "yes"
    assert rows["ISA levels"] == "baseline, v3 (unknown to the compiler: v4)"
    assert rows["cuda module"] == "not built: no nvcc under CUDA_HOME"
    assert not {"CUDA compiler", "CUDA flags", "CUDA archs"} & set(rows)


def test_extension_rows_of_a_build_with_cuda():
    rows = dict(report._extension_rows(record(CUDA, **COMPILED), cpu=None))
    assert rows["cuda module"] == "built"
    assert rows["CUDA compiler"] == "/opt/cuda/bin/nvcc: nvcc 13.0, V13.0.88"
    assert rows["CUDA flags"] == CUDA["flags"]
    assert rows["CUDA archs"] == "80+PTX;90a"


def test_extension_rows_of_a_build_that_could_not_be_done():
    rows = dict(report._extension_rows(record(built=False, reason="no C++ compiler on PATH"), cpu=None))
    assert rows["cpu module"] == "not built: no C++ compiler on PATH"
    assert "compiler" not in rows


def test_extension_rows_without_a_record():
    assert report._extension_rows({}, cpu=None) == [("record", "none: setup.py has not run here")]


@pytest.mark.parametrize(
    ("build_record", "reason"),
    [
        ({}, "pip install . builds it"),
        (record(built=False, reason="no C++ compiler on PATH"), "the build said: no C++ compiler on PATH"),
        (record(**COMPILED), "it was built by g++ 12.2.0"),
        (record(**COMPILED) | {"python": "cpython-39"}, "it was built for cpython-39, this is "),
    ],
)
@pytest.mark.usefixtures("import_blocked")
def test_why_there_is_no_cpu_module(monkeypatch, build_record, reason):
    monkeypatch.setattr(_extension, "build_record", build_record)
    module, why = _extension._import("cpu")
    assert module is None
    assert "_C_cpu" in why, "the import error is not told"
    assert reason in why


@pytest.mark.parametrize(
    ("cuda", "reason"),
    [(NO_CUDA, "the build said: no nvcc under CUDA_HOME"), (CUDA, "it was built by nvcc 13.0, V13.0.88")],
)
@pytest.mark.usefixtures("import_blocked")
def test_why_there_is_no_cuda_module(monkeypatch, cuda, reason):
    monkeypatch.setattr(_extension, "build_record", record(cuda, **COMPILED))
    module, why = _extension._import("cuda")
    assert module is None
    assert "_C_cuda" in why, "the import error is not told"
    assert reason in why


def test_report_tells_the_automatic_choice_and_why():
    rows = report._choice()
    assert [text for condition, text in rows if condition.startswith("local_aggregation on cuda")]
    for row, (condition, text) in zip(ROWS, rows, strict=True):
        assert row.device_type in condition
        assert text == f"{', '.join(row.order)} ({row.because})"


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """The package's place is moved; `checkout(text)` puts a setup.py and csrc beside it."""
    monkeypatch.setattr(_extension, "__file__", str(tmp_path / "container_kernels" / "_extension.py"))
    _extension._build_cuda_emulator.cache_clear()

    def write(setup):
        (tmp_path / "csrc" / "cuda_emulator").mkdir(parents=True)
        (tmp_path / "setup.py").write_text(setup)
        return tmp_path

    yield write
    _extension._build_cuda_emulator.cache_clear()


@pytest.mark.usefixtures("checkout")
def test_the_emulator_needs_a_checkout():
    with pytest.raises(RuntimeError, match=r"needs a source checkout, found no .*setup\.py"):
        _extension.load_cuda_emulator()


def test_a_failing_build_of_the_emulator_is_told_and_not_tried_again(checkout):
    setup = """
import sys
open("tried", "a").write(sys.argv[-1] + "\\n")
print("what compilers print")
raise SystemExit("kernel.cu:1: error: expected a kernel")
"""
    folder = checkout(setup)
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"build_cuda_emulator:\nkernel\.cu:1: error: expected a kernel"):
            _extension.load_cuda_emulator()
    assert (folder / "tried").read_text() == "build_cuda_emulator\n"
