# SPDX-License-Identifier: MIT
"""container_kernels._C_cuda: the CUDA kernels for GPUs.

The CUDA runtime is linked in, so that the module imports where there is no driver and beside any torch.
"""

import os
import shlex
from pathlib import Path
from typing import Any

from . import nvcc as toolkit
from .commands import Command, NothingToBuild, quoted, run
from .compiler import find_compiler, include_flags
from .graph import Step, compilation, locked, run_steps
from .project import BUILD_DIR, MODULE_SUFFIX, SOURCES, env

FOLDER = BUILD_DIR / "cuda"
CXX_FLAGS = ["-std=c++20", "-O3", "-fPIC", "-fvisibility=hidden", "-Wall"]
# ptxas tells registers and spills, which a test reads from the log beside each object.
NVCC_FLAGS = ["-std=c++20", "-O3", "--expt-relaxed-constexpr", "-Xcompiler=-fPIC,-fvisibility=hidden", "-Xptxas=-v"]
RUNTIME = ["-Wl,-Bstatic", "-lcudart_static", "-Wl,-Bdynamic", "-ldl", "-lpthread", "-lrt", "-Wl,--exclude-libs,ALL"]


def build(record: dict[str, Any]) -> Path:
    """Build the module; a decision enters the record when it is made, in case a later step fails.

    Raises:
        NothingToBuild: turned off, or there is no nvcc.
        CannotBuild: it failed; the text says why.
    """
    record["nvcc"] = None
    for variable in ("CONTAINER_KERNELS_BUILD_EXT", "CONTAINER_KERNELS_BUILD_CUDA"):
        if not env.flag(variable):
            raise NothingToBuild(f"turned off by {variable}")
    nvcc = record["nvcc"] = toolkit.find()
    with locked(FOLDER):
        record["compiler_version"] = toolkit.version(nvcc)
        archs = env.value("CONTAINER_KERNELS_CUDA_ARCHS")
        if archs == env.VARIABLES["CONTAINER_KERNELS_CUDA_ARCHS"].default:
            archs = toolkit.known_archs(nvcc, archs)  # an arch of the default list is no reason to fail
        record["archs"] = archs
        arch_flags = toolkit.arch_flags(nvcc, archs)
        compiler = find_compiler()
        host_flags = toolkit.host_compiler_flags(nvcc, compiler, FOLDER / "probe.cu")
        record["flags"] = quoted([*NVCC_FLAGS, *arch_flags, *host_flags])
        kernels = _kernel_compilations([nvcc, *NVCC_FLAGS, *arch_flags, *host_flags])
        cxx = [*compiler, *CXX_FLAGS, *shlex.split(env.value("CXXFLAGS")), *include_flags()]
        bindings = compilation(cxx, SOURCES / "bindings_cuda.cpp", FOLDER / "bindings_cuda.o")
        objects = [step.output for step in (bindings, *kernels)]
        module = FOLDER / f"_C_cuda{MODULE_SUFFIX}"
        runtime = [f"-L{toolkit.static_runtime_folder(nvcc)}", *RUNTIME]
        link_flags = [*shlex.split(env.value("LDFLAGS")), *runtime]
        link = Step(module, objects, [*compiler, "-shared", *objects, "-o", module, *link_flags])
        run_steps(FOLDER, [bindings, *kernels], link)
    return module


def build_program(source: Path, output: Path, archs: str = "native") -> None:
    """Build a program of a source and the kernels as the last build compiled them.

    Args:
        archs: GPUs to compile the source for, as CONTAINER_KERNELS_CUDA_ARCHS has them; by default this machine's.

    Raises:
        CannotBuild: the text says why.
    """
    nvcc = toolkit.find()
    kernels = [FOLDER / step.output for step in _kernel_compilations([])]
    flags = ["-std=c++20", "--expt-relaxed-constexpr", *toolkit.arch_flags(nvcc, archs), "-lineinfo"]
    run([nvcc, *flags, "-I", SOURCES, source, *kernels, "-o", output])


def _kernel_compilations(nvcc: Command) -> list[Step]:
    """Every .cu file. Paths are relative to the folder of the steps: nvcc passes them to a shell in double quotes."""
    sources = Path(os.path.relpath(SOURCES, FOLDER.resolve()))
    steps = []
    for source in sorted([*SOURCES.glob("cuda/*.cu"), *SOURCES.glob("*/cuda/*.cu")]):
        name = source.relative_to(SOURCES)
        compiled = Path(f"{name}.o")
        steps.append(compilation([*nvcc, "-I", sources], sources / name, compiled, log=Path(f"{name}.log")))
    return steps
