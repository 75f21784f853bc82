# SPDX-License-Identifier: MIT
"""setup.py: what it builds, what it leaves alone, and that only an explicit wish makes an install fail.

Each test builds a copy of the repository with small sources (scratch_tree.py). The CUDA modules: test_build_cuda.py.
"""

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from scratch_tree import (
    COMPILER,
    OUTSIDE,
    SUFFIX,
    build,
    compiled,
    executable,
    needs_compiler,
    python,
    read_record,
    scratch_tree,
)

from container_kernels import _extension

MODULE = f"_C_cpu{SUFFIX}"

# level() tells its level, whether its code may use AVX-512 (+ or -), and the same as a function sees it that all
# levels define and the linker keeps once.
KERNEL_HEADER = """
#pragma once
#ifdef __AVX512F__
#define SIGN "+"
#else
#define SIGN "-"
#endif
__attribute__((noinline)) inline const char* shared_sign() { return SIGN; }
"""
KERNEL = """
#include "level.h"
#include <string>
#define TEXT2(x) #x
#define TEXT(x) TEXT2(x)
namespace CK_ISA {
std::string level() { return std::string(TEXT(CK_ISA) SIGN) + shared_sign(); }
}
"""
BINDINGS = """
#include <Python.h>
#include <string>
namespace baseline { std::string level(); }
namespace v3 { std::string level(); }
namespace v4 { std::string level(); }
static PyObject* levels(PyObject*, PyObject*) {
    std::string text = baseline::level();
#ifdef CK_HAVE_V3
    if (__builtin_cpu_supports("x86-64-v3")) text += " " + v3::level();
#endif
#ifdef CK_HAVE_V4
    if (__builtin_cpu_supports("x86-64-v4")) text += " " + v4::level();
#endif
    return PyUnicode_FromString(text.c_str());
}
static PyMethodDef methods[] = {{"levels", levels, METH_NOARGS, nullptr}, {}};
static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_C_cpu", nullptr, -1, methods};
PyMODINIT_FUNC PyInit__C_cpu() { return PyModule_Create(&definition); }
"""


@pytest.fixture
def tree(tmp_path):
    """Small C++ sources, and a blank and a dollar in the path."""
    sources = {"bindings_cpu.cpp": BINDINGS, "op/cpu/level.h": KERNEL_HEADER, "op/cpu/level_kernel.cpp": KERNEL}
    return scratch_tree(tmp_path / "a $tree", sources)


def runnable_levels(tree):
    """What the level() of each level says that this processor can run."""
    program = "import _C_cpu; print(_C_cpu.levels())"
    return python("-c", program, cwd=tree / "container_kernels").stdout.split()


@needs_compiler
def test_kernels_are_built_once_per_isa_level(tree):
    record, printed = build(tree)
    assert record["cpu"]["built"], record
    levels = record["cpu"]["isa_levels"]
    assert levels[0] == "baseline"
    assert len(compiled(printed)) == 1 + len(levels)
    # The second sign: a function shared by the levels is the baseline's, whoever calls it.
    expected = {"baseline": "baseline--", "v3": "v3--", "v4": "v4+-"}
    runnable = runnable_levels(tree)
    assert runnable == [expected[level] for level in levels][: len(runnable)]
    assert runnable


@needs_compiler
def test_a_level_unknown_to_the_compiler_is_left_out(tree):
    old = executable(tree / "old-compiler", f'case "$*" in *x86-64-v4*) exit 1;; esac\nexec {COMPILER} "$@"')
    record, _ = build(tree, CXX=f"sh '{old}'")
    assert "v4" not in record["cpu"]["isa_levels"]
    assert "v4" in record["cpu"]["isa_levels_unknown_to_compiler"]
    assert runnable_levels(tree)[0] == "baseline--"
    assert "v4+-" not in runnable_levels(tree)


@needs_compiler
def test_an_unchanged_repeat_compiles_nothing(tree, tmp_path):
    build(tree)
    assert "no work to do" in build(tree)[1]
    # With build isolation pybind11 lies elsewhere each time.
    import pybind11

    elsewhere = tmp_path / "isolated"
    shutil.copytree(Path(pybind11.__file__).parent, elsewhere / "pybind11")
    assert "no work to do" in build(tree, PYTHONPATH=elsewhere)[1]


@needs_compiler
def test_a_changed_header_recompiles_what_includes_it(tree):
    record, _ = build(tree)
    header = tree / "csrc" / "op" / "cpu" / "level.h"
    header.write_text(KERNEL_HEADER + "// changed\n")
    _, printed = build(tree)
    assert len(compiled(printed)) == len(record["cpu"]["isa_levels"])
    assert "bindings_cpu.cpp" not in printed


@needs_compiler
def test_two_builds_at_a_time_wait_for_each_other(tree):
    command = [sys.executable, "setup.py", "build_ext"]
    both = [
        subprocess.Popen([*command, f"--build-lib={lib}"], cwd=tree, env=OUTSIDE, stdout=subprocess.PIPE, text=True)
        for lib in ("first", "second")
    ]
    printed = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sum("no work to do" in text for text in printed) == 1, printed
    assert all((tree / lib / "container_kernels" / MODULE).exists() for lib in ("first", "second"))


@needs_compiler
def test_without_ninja_everything_is_compiled(tree):
    program = """
import runpy, shutil, sys
sys.modules["ninja"] = None
which = shutil.which
shutil.which = lambda name, **options: None if name == "ninja" else which(name, **options)
sys.argv = ["setup.py", "build_ext", "--inplace"]
runpy.run_path("setup.py", run_name="__main__")
"""
    python("-c", program, cwd=tree)
    assert read_record(tree)["cpu"]["ninja"] is False
    assert runnable_levels(tree)[0] == "baseline--"


@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        ({"CONTAINER_KERNELS_BUILD_EXT": "0"}, "turned off by CONTAINER_KERNELS_BUILD_EXT"),
        ({"CXX": "no-such-compiler -m64"}, "CXX names was not found: no-such-compiler -m64"),
        ({"CXX": "", "PATH": "/nowhere"}, "no C++ compiler on PATH: looked for g++, clang++, c++"),
        ({"CXX": "false"}, "false --version"),
        pytest.param({"MAX_JOBS": "many"}, "MAX_JOBS must be a positive integer", marks=needs_compiler),
    ],
)
def test_a_build_that_cannot_be_done_is_recorded(tree, variables, reason):
    stale = tree / "container_kernels" / MODULE
    stale.touch()
    record, printed = build(tree, **variables)
    assert not record["cpu"]["built"]
    assert reason in record["cpu"]["reason"]
    assert reason in printed
    assert not stale.exists(), "a module of an earlier build was left behind"


@needs_compiler
def test_a_failing_compilation_still_installs(tree, tmp_path):
    # It must not take the module of this build along.
    build(tree)
    (tree / "csrc" / "op" / "cpu" / "level_kernel.cpp").write_text("#error this line is broken\n")
    target = tmp_path / "site"
    python(
        *("-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target", target, "."),
        cwd=tree,
    )
    reason = read_record(target)["cpu"]["reason"]
    assert "this line is broken" in reason
    assert "level_kernel.cpp" in reason.splitlines()[0], "the reason starts with the command that failed"
    assert not (target / "container_kernels" / MODULE).exists()
    assert (target / "container_kernels" / "__init__.py").exists()


def test_an_extension_that_is_required_fails_the_build(tree):
    done = python(
        *("setup.py", "build_ext", "--inplace"),
        cwd=tree,
        check=False,
        CXX="no-such-compiler",
        CONTAINER_KERNELS_REQUIRE_EXT="1",
    )
    assert done.returncode != 0
    assert "no-such-compiler" in done.stdout
    assert "CONTAINER_KERNELS_REQUIRE_EXT is set" in done.stdout


@needs_compiler
def test_wheel_holds_the_package_and_the_module_alone(tree, tmp_path):
    # What an editable install of another interpreter leaves in the source tree.
    (tree / "container_kernels" / "_C_cpu.other-abi.so").touch()
    (tree / "container_kernels" / "_build_info.py").write_text("RECORD = 'stale'\n")
    python(*("-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", tmp_path, "."), cwd=tree)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    held = {name for name in names if ".dist-info/" not in name}
    sources = {str(path.relative_to(tree)) for path in (tree / "container_kernels").rglob("*.py")}
    assert held == sources | {f"container_kernels/{MODULE}"}
    assert any("triton" in name for name in held)
    assert any(name.endswith("LICENSE") for name in names)
    zipfile.ZipFile(wheel).extract("container_kernels/_build_info.py", tmp_path)
    assert read_record(tmp_path)["cpu"]["built"]


def test_sdist_holds_the_sources_and_nothing_generated(tree):
    build(tree, CONTAINER_KERNELS_BUILD_EXT="0")
    python("setup.py", "--quiet", "sdist", "--formats=zip", cwd=tree)
    (sdist,) = (tree / "dist").glob("*.zip")
    names = {name.partition("/")[2] for name in zipfile.ZipFile(sdist).namelist()}
    assert {
        "setup.py",
        "builder/backend.py",
        "LICENSE",
        "csrc/bindings_cpu.cpp",
        "csrc/op/cpu/level.h",
        "csrc/op/cpu/level_kernel.cpp",
    } <= names
    assert "container_kernels/_build_info.py" not in names
    assert not [name for name in names if name.startswith("build/") or name.endswith(".pyc")]


@pytest.mark.skipif(_extension.cpu is None, reason=f"no extension here: {_extension.why_no_cpu}")
def test_the_installed_module_needs_no_torch_library():
    printed = subprocess.run(
        ["readelf", "--dynamic", _extension.cpu.__file__], capture_output=True, text=True, check=True
    ).stdout
    needed = re.findall(r"\(NEEDED\).*\[(.+)\]", printed)
    assert any(name.startswith("libstdc++") for name in needed), printed
    assert not [name for name in needed if re.search("torch|c10|cuda|python", name)], needed
