# SPDX-License-Identifier: MIT
"""container_kernels._C_cpu: the C++ kernels for processors."""

import shlex
from pathlib import Path
from typing import Any

from .commands import CannotBuild, Command, quoted, run
from .compiler import accepts, find_compiler, include_flags
from .graph import Step, compilation, find_ninja, job_count, locked, run_steps
from .project import BUILD_DIR, MODULE_SUFFIX, SOURCES, env

FOLDER = BUILD_DIR / "cpu"
# No -ffast-math: NaN and infinity keep their meaning. errno and floating-point traps are not read.
CXX_FLAGS = ["-std=c++20", "-O3", "-fPIC", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math"]
OPENMP_FLAG = "-fopenmp"
# From the lowest to the highest; `_compilations` depends on this order.
ISA_FLAGS = {
    "baseline": [],
    "v3": ["-march=x86-64-v3"],
    "v4": ["-march=x86-64-v4", "-mprefer-vector-width=512"],
}


def build(record: dict[str, Any]) -> Path:
    """Build the module; a decision enters the record when it is made, in case a later step fails.

    Raises:
        CannotBuild: the text says why.
    """
    if not env.flag("CONTAINER_KERNELS_BUILD_EXT"):
        raise CannotBuild("turned off by CONTAINER_KERNELS_BUILD_EXT")
    with locked(FOLDER):
        compiler = find_compiler()
        record["compiler"] = quoted(compiler)
        record["compiler_version"] = run([*compiler, "--version"]).partition("\n")[0]
        uses_openmp = "#include <omp.h>\nint main() { return omp_get_max_threads() < 1; }"
        openmp = [OPENMP_FLAG] if accepts(compiler, [OPENMP_FLAG], uses_openmp, FOLDER) else []
        levels = _supported_levels(compiler)
        defines = [f"-DCK_HAVE_{level.upper()}" for level in levels if level != "baseline"]
        flags = [*CXX_FLAGS, *openmp, *defines, "-Wall", *shlex.split(env.value("CXXFLAGS"))]
        link_flags = [*openmp, *shlex.split(env.value("LDFLAGS"))]
        record.update(
            flags=quoted(flags),
            link_flags=quoted(link_flags),
            openmp=bool(openmp),
            isa_levels=levels,
            isa_levels_unknown_to_compiler=[level for level in ISA_FLAGS if level not in levels],
            ninja=bool(find_ninja()),
            jobs=job_count(),
        )
        compilations = _compilations([*compiler, *flags, *include_flags()], levels)
        objects = [step.output for step in compilations]
        module = FOLDER / f"_C_cpu{MODULE_SUFFIX}"
        link = Step(module, objects, [*compiler, "-shared", *objects, "-o", module, *link_flags])
        run_steps(FOLDER, compilations, link)
    return module


def _supported_levels(compiler: Command) -> list[str]:
    """The ISA levels this compiler can both generate code for and ask the processor about."""
    ask = 'int main() { return __builtin_cpu_supports("movbe") && __builtin_cpu_supports("avx512vl"); }'
    return [level for level, flags in ISA_FLAGS.items() if level == "baseline" or accepts(compiler, flags, ask, FOLDER)]


def _compilations(compiler: Command, levels: list[str]) -> list[Step]:
    """Every source, the `*_kernel.cpp` ones once for each ISA level.

    Of an inline function that several objects define (say, a standard one) the linker keeps the first
    it meets. So the objects are linked from the lowest level to the highest: in another order, a lower level
    could call code of a higher one, which stops a processor that lacks it.
    """
    steps = []
    for level in levels:
        for source in sorted([SOURCES / "bindings_cpu.cpp", *SOURCES.glob("**/cpu/*.cpp")]):
            is_kernel = source.name.endswith("_kernel.cpp")
            if not is_kernel and level != "baseline":
                continue
            compiled = FOLDER / level / source.relative_to(SOURCES).with_suffix(".o")
            isa_flags = [*ISA_FLAGS[level], f"-DCK_ISA={level}"] if is_kernel else []
            steps.append(compilation([*compiler, *isa_flags], source, compiled))
    return steps
