# SPDX-License-Identifier: MIT
"""`python -m container_kernels`, and what the package says about an extension that is not there."""

import subprocess
import sys
from importlib import metadata

import pytest
import torch

from container_kernels import __main__ as report
from container_kernels import _env, _extension
from container_kernels.ops.backend import usable_backends

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
NO_CUDA = {"built": False, "reason": "csrc holds no CUDA sources", "nvcc": None}


def record(**cpu):
    return {"python": _extension.SOABI, "cuda": NO_CUDA, "cpu": cpu}


@pytest.fixture
def import_blocked(monkeypatch):
    """The extension's import fails."""
    monkeypatch.delattr("container_kernels._C_cpu", raising=False)
    monkeypatch.setitem(sys.modules, "container_kernels._C_cpu", None)


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
    assert rows["cuda module"] == "not built: csrc holds no CUDA sources"


def test_extension_rows_of_a_build_that_could_not_be_done():
    rows = dict(report._extension_rows(record(built=False, reason="no C++ compiler on PATH"), cpu=None))
    assert rows["cpu module"] == "not built: no C++ compiler on PATH"
    assert rows["nvcc"] == "not found"
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
    module, why = _extension._import_cpu()
    assert module is None
    assert "_C_cpu" in why, "the import error is not told"
    assert reason in why
