# SPDX-License-Identifier: MIT
"""The CUDA kernels as a program of this machine's processor, for tests without a GPU.

The .cu files are compiled as C++; csrc/host stands for the device. Nothing of this belongs to an install: it is
built when a test asks for it, and kept in the build folder.
"""

from pathlib import Path

from .commands import CannotBuild, Command
from .compiler import find_compiler, include_flags
from .graph import Step, compilation, locked, run_steps
from .project import BUILD_DIR, MODULE_SUFFIX, SOURCES

# -O1: what is compiled runs a few milliseconds.
CXX_FLAGS = ["-std=c++20", "-fPIC", "-fvisibility=hidden", "-Wall", "-pthread", "-DCK_HOST"]
SANITIZERS = ("address", "thread")


def build_module() -> Path:
    """Build `_C_cuda_host` and return its path.

    Raises:
        CannotBuild: the text says why.
    """
    folder = BUILD_DIR / "cuda_host"
    sources = [SOURCES / "bindings_cuda.cpp", *SOURCES.glob("host/*.cpp"), *kernel_sources()]
    return _build(folder, sources, ["-O1"], folder / f"_C_cuda_host{MODULE_SUFFIX}", ["-shared"])


def build_check(sanitizer: str) -> Path:
    """Build the program that checks the host runtime and the kernels under a sanitizer and return its path.

    Raises:
        CannotBuild: the text says why.
    """
    if sanitizer not in SANITIZERS:
        raise CannotBuild(f"sanitize: expected one of {', '.join(SANITIZERS)}, got {sanitizer!r}")
    folder = BUILD_DIR / f"cuda_host_{sanitizer}"
    sources = [*SOURCES.glob("host/*.cpp"), *SOURCES.glob("host/check/*.cpp"), *kernel_sources()]
    flags = [f"-fsanitize={sanitizer}", "-g", "-O1", "-fno-omit-frame-pointer"]
    return _build(folder, sources, flags, folder / "check", flags)


def kernel_sources() -> list[Path]:
    return [*SOURCES.glob("**/cuda/*.cu")]


def _build(folder: Path, sources: list[Path], flags: Command, output: Path, link_flags: Command) -> Path:
    with locked(folder):
        compiler = find_compiler()
        compile_command = [*compiler, *CXX_FLAGS, *flags, *include_flags()]
        compilations = []
        for source in sorted(sources):
            language = ["-x", "c++"] if source.suffix == ".cu" else []
            # The whole name, since kernel.cu and kernel.cpp may lie side by side.
            compiled = folder / f"{source.relative_to(SOURCES)}.o"
            compilations.append(compilation([*compile_command, *language], source, compiled))
        objects = [step.output for step in compilations]
        link = Step(output, objects, [*compiler, *link_flags, "-pthread", *objects, "-o", output])
        run_steps(folder, compilations, link)
    return output
