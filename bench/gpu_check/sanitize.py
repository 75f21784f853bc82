# SPDX-License-Identifier: MIT
"""Every CUDA C++ kernel under one of compute-sanitizer's tools.

    python -m bench.gpu_check.sanitize memcheck build/gpu_check

Builds tests/device/run_kernels.cu with the kernels of the last build, once for all tools. Without compute-sanitizer on
the machine nothing is checked, the status is 0 and the last line says so.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from bench import ROOT
from bench.gpu_check.steps import NOT_RUN
from builder import nvcc
from builder.commands import CannotBuild
from builder.cuda import build_program
from builder.graph import locked
from builder.project import env

SOURCE = ROOT / "tests" / "device" / "run_kernels.cu"


def main(tool: str, folder: Path) -> int:
    sanitizer = find_sanitizer()
    if sanitizer is None:
        print("compute-sanitizer is not on this machine")
        return NOT_RUN
    program = folder / "sanitized" / "run_kernels"
    with locked(program.parent):
        if not program.exists():
            build_program(SOURCE, program, archs=env.value("CONTAINER_KERNELS_CUDA_ARCHS"))
    return subprocess.run([sanitizer, "--tool", tool, "--error-exitcode", "3", program]).returncode


def find_sanitizer() -> str | None:
    """On PATH, or beside nvcc."""
    try:
        beside = str(Path(nvcc.find()).resolve().parent)
    except CannotBuild:
        beside = "/usr/local/cuda/bin"
    return shutil.which("compute-sanitizer", path=os.pathsep.join([os.environ.get("PATH", ""), beside]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
