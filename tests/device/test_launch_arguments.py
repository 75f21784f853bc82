"""A launch by nvcc's half of the device runtime hands over arguments of the parameters' types. It needs no GPU."""

import subprocess
from pathlib import Path

import pytest

from builder import nvcc
from builder.commands import NothingToBuild, run
from builder.project import SOURCES

HERE = Path(__file__).parent


def test_arguments_become_the_types_of_the_parameters(tmp_path):
    try:
        compiler = nvcc.find()
    except NothingToBuild as reason:
        pytest.skip(str(reason))
    program = tmp_path / "launch_arguments"
    flags = ["-std=c++20", "--expt-relaxed-constexpr", "-arch=sm_80", "-Xlinker", "--wrap=cudaLaunchKernel"]
    sources = [HERE / "launch_arguments.cu", SOURCES / "common" / "runtime.cu"]
    run([compiler, *flags, "-I", SOURCES, *sources, "-o", program])
    printed = subprocess.run([program], stdout=subprocess.PIPE, text=True, check=True).stdout
    # An int in the place of an int64_t would be read with what lies behind it.
    assert printed == "-1 2 -3 0.5, 4 x 5 x 1 blocks of 32, 100 bytes\n"
