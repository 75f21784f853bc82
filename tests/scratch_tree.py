"""Builds of a copy of the repository in which a few lines stand for the C++ sources, so that one takes a second.

The copy is otherwise the real thing.
"""

import os
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")
# The build's own variables are each test's to set; so are the CUDA sources, which the copy does not have.
OUTSIDE = {name: text for name, text in os.environ.items() if not name.startswith("CONTAINER_KERNELS_")}
OUTSIDE["CONTAINER_KERNELS_BUILD_CUDA"] = "0"
COMPILER = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")

needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler on this machine")


def scratch_tree(tree, sources):
    """Copy the repository to `tree`; its csrc holds `sources`, {path: text}."""
    generated = shutil.ignore_patterns("__pycache__", "*.so", "_build_info.py")
    for name in ("container_kernels", "builder"):
        shutil.copytree(ROOT / name, tree / name, ignore=generated)
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    for name in ("python", "tests", "bench"):
        (tree / name).mkdir()
        (tree / name / "__init__.py").touch()
    for name, text in sources.items():
        path = tree / "csrc" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tree


def python(*arguments, cwd, check=True, **variables):
    """The interpreter's run with these environment variables on top; if checked, it must succeed."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env=OUTSIDE | {name: str(text) for name, text in variables.items()},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0 or not check, done.stdout
    return done


def build(tree, **variables):
    """Build in place; the record and what was printed."""
    printed = python("setup.py", "build_ext", "--inplace", cwd=tree, **variables).stdout
    return read_record(tree), printed


def read_record(folder):
    return runpy.run_path(str(folder / "container_kernels" / "_build_info.py"))["RECORD"]


def compiled(printed):
    """Names of the sources that ninja compiled."""
    names = re.findall(r" -c (?:'[^']*?/|\S*?/)(\w+\.(?:cpp|cu))", printed)
    return sorted(names)


def executable(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path
