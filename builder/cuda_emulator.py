# SPDX-License-Identifier: MIT
"""The CUDA kernels as a program of this machine's processor, for tests without a GPU.

The .cu files are compiled as C++; csrc/cuda_emulator stands for the device. Nothing of this belongs to an install:
it is built when a test asks for it, and kept in the build folder.
"""

import shlex
from pathlib import Path

from .commands import Command
from .compiler import find_compiler, include_flags
from .graph import Step, compilation, locked, run_steps
from .project import BUILD_DIR, MODULE_SUFFIX, ROOT, SOURCES, env

# -O1: a kernel runs for milliseconds, so that -O2 costs more of a test's time than it gains.
CXX_FLAGS = ["-std=c++20", "-O1", "-fPIC", "-fvisibility=hidden", "-Wall", "-pthread", "-DCK_EMULATED"]
# As nvcc does, a · b + c in one rounding: a difference of the product and what it was rounded to is then not zero.
FUSED_MULTIPLY_ADD = ["-mfma", "-ffp-contract=fast", "-fexpensive-optimizations"]
DEBUG_FLAGS = ["-g", "-fno-omit-frame-pointer"]
# Sanitizer -> what kernels, and what the emulator is compiled with. ThreadSanitizer is to see the accesses of the
# kernels alone: threads that take turns share the runtime's own notes on purpose.
SANITIZERS = {
    None: ([], []),
    "address": (["-fsanitize=address", *DEBUG_FLAGS], ["-fsanitize=address", *DEBUG_FLAGS]),
    "thread": (["-fsanitize=thread", *DEBUG_FLAGS], ["-DCK_RACE_CHECK", *DEBUG_FLAGS]),
}


def build_module() -> Path:
    """Build `_C_cuda_emulator` and return its path.

    Raises:
        CannotBuild: the text says why.
    """
    folder = BUILD_DIR / "cuda_emulator"
    sources = [SOURCES / "bindings_cuda.cpp", *kernel_sources()]
    return _build(folder, sources, None, ["-shared"], folder / f"_C_cuda_emulator{MODULE_SUFFIX}")


def build_program(name: str, sources: list[Path], sanitizer: str | None = None) -> Path:
    """Build a program of our own kernels or those of a test on the emulator, and return its path.

    Args:
        name: of the program.
        sources: of the program; .cu files are compiled as C++.
        sanitizer: "address", "thread" or None.

    Raises:
        CannotBuild: the text says why.
    """
    folder = BUILD_DIR / f"{name}_{sanitizer or 'plain'}"
    link_flags = [f"-fsanitize={sanitizer}"] if sanitizer else []
    return _build(folder, sources, sanitizer, link_flags, folder / name)


def kernel_sources() -> list[Path]:
    return [*SOURCES.glob("*/cuda/*.cu")]


def _build(folder: Path, sources: list[Path], sanitizer: str | None, link_flags: Command, output: Path) -> Path:
    kernel_flags, runtime_flags = SANITIZERS[sanitizer]
    runtime = [*SOURCES.glob("cuda_emulator/*.cpp")]
    with locked(folder):
        compiler = find_compiler()
        fused = FUSED_MULTIPLY_ADD if _processor_has("fma") else []
        base = [*compiler, *CXX_FLAGS, *fused, *shlex.split(env.value("CXXFLAGS")), *include_flags()]
        compilations = []
        for source in sorted([*sources, *runtime]):
            flags = runtime_flags if source in runtime else kernel_flags
            language = ["-x", "c++"] if source.suffix == ".cu" else []
            # The whole name, since kernel.cu and kernel.cpp may lie side by side.
            compiled = folder / f"{source.relative_to(ROOT)}.o"
            compilations.append(compilation([*base, *flags, *language], source, compiled))
        objects = [step.output for step in compilations]
        link_flags = [*link_flags, *shlex.split(env.value("LDFLAGS")), "-pthread"]
        link = Step(output, objects, [*compiler, *objects, "-o", output, *link_flags])
        run_steps(folder, compilations, link)
    return output


def _processor_has(feature: str) -> bool:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return any(line.startswith("flags") and feature in line.split() for line in text.splitlines())
