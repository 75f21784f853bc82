# SPDX-License-Identifier: MIT
"""Builds the extension modules of container_kernels; the metadata is in pyproject.toml.

No torch header is included: torch is not needed here, and one build serves every version of it. A build that
cannot be done (no compiler, an error) leaves a package that installs and works without the extension, and the
reason in `container_kernels/_build_info.py`, which `python -m container_kernels` shows. The environment
variables are listed in `container_kernels/_env.py`.
"""

import importlib.util
import os
import pprint
import shlex
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
SOURCES = ROOT / "csrc"
RECORD_FILE = Path("container_kernels", "_build_info.py")
SOABI = sysconfig.get_config_var("SOABI") or sys.implementation.cache_tag
# Objects outlive a build, so that a repeat compiles only what changed; one folder for each Python ABI.
BUILD_DIR = ROOT / "build" / f"extension-{SOABI}"

# No -ffast-math: NaN and infinity keep their meaning. errno and floating-point traps are what nobody reads.
CXX_FLAGS = ["-std=c++20", "-O3", "-fPIC", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math"]
OPENMP_FLAG = "-fopenmp"
# From the lowest to the highest; `cpu_steps` depends on this order.
ISA_FLAGS = {
    "baseline": [],
    "v3": ["-march=x86-64-v3"],
    "v4": ["-march=x86-64-v4", "-mprefer-vector-width=512"],
}
MEMORY_PER_JOB = 2 << 30


def load_env_module():
    """`container_kernels._env` without the package around it, which needs torch."""
    spec = importlib.util.spec_from_file_location("_env", ROOT / "container_kernels" / "_env.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


env = load_env_module()


class CannotBuild(Exception):
    """Why there is no extension; the text goes into the record."""


class Step(NamedTuple):
    """A command, the files it reads and the file it writes."""

    output: Path
    inputs: list[Path]
    command: list[str | Path]


def quoted(command: list[str | Path]) -> str:
    return shlex.join(map(str, command))


def run(command: list[str | Path]) -> str:
    """What the command prints; CannotBuild with the command and its first error lines when it fails."""
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    except OSError as error:
        raise CannotBuild(f"{quoted(command)}\n{error}") from error
    if done.returncode:
        print(done.stdout, file=sys.stderr)
        raise CannotBuild(f"{first_errors(done.stdout, command)}\nexit status {done.returncode}")
    return done.stdout


def first_errors(printed: str, command: list[str | Path], limit: int = 8) -> str:
    """The command that failed and the first lines that say error, or the first lines at all."""
    lines = printed.splitlines()
    failed = quoted(command)
    for number, line in enumerate(lines[:-1]):
        if line.startswith("FAILED:"):  # ninja: the next line is the command, its output follows
            failed, lines = lines[number + 1], lines[number + 2 :]
            break
    errors = [line for line in lines if "error" in line.lower()] or lines
    return "\n".join([failed, *errors[:limit]])


def find_compiler() -> list[str]:
    """The C++ compiler as a command: CXX, which may hold arguments ("ccache g++"), else the first on PATH."""
    asked = env.value("CXX")
    for candidate in [asked] if asked else ["g++", "clang++", "c++"]:
        command = shlex.split(candidate)
        if command and shutil.which(command[0]):
            return command
    if asked:
        raise CannotBuild(f"the C++ compiler that CXX names was not found: {asked}")
    raise CannotBuild("no C++ compiler on PATH: looked for g++, clang++, c++ (CXX names another)")


def accepts(compiler: list[str], flags: list[str], program: str) -> bool:
    """Whether the program compiles and links with these flags."""
    source = BUILD_DIR / "probe.cpp"
    source.write_text(program)
    command = [*compiler, "-Werror", *flags, source, "-o", source.with_suffix("")]
    return subprocess.run(command, capture_output=True).returncode == 0


def supported_levels(compiler: list[str]) -> list[str]:
    """The ISA levels this compiler can both generate code for and ask the processor about."""
    ask = 'int main() { return __builtin_cpu_supports("movbe") && __builtin_cpu_supports("avx512vl"); }'
    return [level for level, flags in ISA_FLAGS.items() if level == "baseline" or accepts(compiler, flags, ask)]


def job_count() -> int:
    """MAX_JOBS, else a job for each core as far as the free memory goes."""
    asked = env.value("MAX_JOBS")
    if asked:
        if not asked.isdecimal() or int(asked) < 1:
            raise CannotBuild(f"MAX_JOBS must be a positive integer, got {asked!r}")
        return int(asked)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        available = int(fields["MemAvailable"].split()[0]) << 10
    except (OSError, KeyError):
        return cores
    return max(1, min(cores, available // MEMORY_PER_JOB))


def pybind11_include() -> Path:
    """A copy of pybind11's headers in the build folder.

    pip's isolation puts the originals into a new temporary folder each time, which would make every repeat a
    full build.
    """
    try:
        import pybind11
    except ImportError as error:
        raise CannotBuild(f"{error}: without build isolation, first pip install pybind11 ninja") from error
    include = BUILD_DIR / f"pybind11-{pybind11.__version__}"
    if not include.exists():
        partial = include.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(Path(pybind11.get_include(), "pybind11"), partial / "pybind11")
        partial.rename(include)
    return include


def find_ninja() -> str | None:
    """Path of ninja: the PyPI package's, else the one on PATH."""
    try:
        import ninja
    except ImportError:
        return shutil.which("ninja")
    return shutil.which("ninja", path=ninja.BIN_DIR) or shutil.which("ninja")


def find_nvcc() -> str | None:
    """Path of nvcc: under CUDA_HOME, under CUDA_PATH, on PATH, under /usr/local/cuda, in this order."""
    roots = [env.value("CUDA_HOME"), env.value("CUDA_PATH")]
    folders = [os.path.join(root, "bin") for root in roots if root]
    # None is PATH.
    found = (shutil.which("nvcc", path=folder) for folder in [*folders, None, "/usr/local/cuda/bin"])
    return next(filter(None, found), None)


def cpu_steps(
    compiler: list[str], flags: list[str | Path], levels: list[str], link_flags: list[str], module: Path
) -> tuple[list[Step], Step]:
    """Compile every source, the `*_kernel.cpp` ones once for each ISA level, then link.

    Of an inline function that several objects define (say, a standard one) the linker keeps the first
    it meets. So the objects are linked from the lowest level to the highest: in another order, a lower level
    could call code of a higher one, which stops a processor that lacks it.
    """
    compilations = []
    for level in levels:
        for source in sorted([SOURCES / "bindings_cpu.cpp", *SOURCES.glob("**/cpu/*.cpp")]):
            is_kernel = source.name.endswith("_kernel.cpp")
            if not is_kernel and level != "baseline":
                continue
            compiled = BUILD_DIR / level / source.relative_to(SOURCES).with_suffix(".o")
            isa_flags = [*ISA_FLAGS[level], f"-DCK_ISA={level}"] if is_kernel else []
            depfile = ["-MMD", "-MF", f"{compiled}.d"]
            command = [*compiler, *flags, *isa_flags, *depfile, "-c", source, "-o", compiled]
            compilations.append(Step(compiled, [source], command))
    objects = [step.output for step in compilations]
    link = Step(module, objects, [*compiler, "-shared", *objects, "-o", module, *link_flags])
    return compilations, link


def write_ninja(path: Path, compilations: list[Step], link: Step) -> None:
    def escaped(name: Path) -> str:
        return str(name).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")

    def edge(rule: str, step: Step) -> list[str]:
        return [
            f"build {escaped(step.output)}: {rule} {' '.join(map(escaped, step.inputs))}",
            f"  command_line = {quoted(step.command).replace('$', '$$')}",
        ]

    lines = ["rule compile", "  command = $command_line", "  depfile = $out.d"]
    lines += ["rule link", "  command = $command_line"]
    for step in compilations:
        lines += edge("compile", step)
    path.write_text("\n".join([*lines, *edge("link", link), ""]))


def run_steps(compilations: list[Step], link: Step, jobs: int, ninja: str | None) -> None:
    """Run what is out of date; without ninja, run everything."""
    for step in compilations:
        step.output.parent.mkdir(parents=True, exist_ok=True)
    if ninja:
        write_ninja(BUILD_DIR / "build.ninja", compilations, link)
        print(run([ninja, "-C", BUILD_DIR, "-j", str(jobs)]))
    else:
        with ThreadPoolExecutor(jobs) as pool:
            list(pool.map(run, [step.command for step in compilations]))
        run(link.command)


@contextmanager
def build_dir():
    """Create the build folder and keep other builds out of it: two at a time would spoil ninja's logs."""
    BUILD_DIR.mkdir(parents=True, exist_ok=True)
    with open(BUILD_DIR / "lock", "w") as lock:
        try:
            import fcntl
        except ImportError:  # Windows
            yield
        else:
            fcntl.flock(lock, fcntl.LOCK_EX)  # released when the file is closed
            yield


def build_cpu(module: Path, record: dict[str, Any]) -> None:
    """Build the CPU module; a decision enters the record when it is made, in case a later step fails."""
    if not env.flag("CONTAINER_KERNELS_BUILD_EXT"):
        raise CannotBuild("turned off by CONTAINER_KERNELS_BUILD_EXT")
    compiler = find_compiler()
    record["compiler"] = quoted(compiler)
    record["compiler_version"] = run([*compiler, "--version"]).partition("\n")[0]
    uses_openmp = "#include <omp.h>\nint main() { return omp_get_max_threads() < 1; }"
    openmp = [OPENMP_FLAG] if accepts(compiler, [OPENMP_FLAG], uses_openmp) else []
    levels = supported_levels(compiler)
    defines = [f"-DCK_HAVE_{level.upper()}" for level in levels if level != "baseline"]
    flags = [*CXX_FLAGS, *openmp, *defines, "-Wall", *shlex.split(env.value("CXXFLAGS"))]
    link_flags = [*openmp, *shlex.split(env.value("LDFLAGS"))]
    ninja, jobs = find_ninja(), job_count()
    record.update(
        flags=quoted(flags),
        link_flags=quoted(link_flags),
        openmp=bool(openmp),
        isa_levels=levels,
        isa_levels_unknown_to_compiler=[level for level in ISA_FLAGS if level not in levels],
        ninja=bool(ninja),
        jobs=jobs,
    )
    includes = ["-I", SOURCES, "-isystem", pybind11_include(), "-isystem", sysconfig.get_path("include")]
    run_steps(*cpu_steps(compiler, [*flags, *includes], levels, link_flags, module), jobs, ninja)


def cuda_record() -> dict[str, Any]:
    """There is no CUDA source to build yet; what can be told is which compiler it would get."""
    nvcc = find_nvcc()
    missing = "no nvcc under CUDA_HOME, CUDA_PATH, on PATH or in /usr/local/cuda"
    return {"built": False, "reason": "csrc holds no CUDA sources" if nvcc else missing, "nvcc": nvcc}


class BuildExtension(build_ext):
    """Builds what it can, writes down what it decided; only CONTAINER_KERNELS_REQUIRE_EXT makes it fail."""

    def run(self) -> None:
        self.record = {"python": SOABI, "cuda": cuda_record()}
        # setuptools clears inplace during super().run(), which builds into build_lib and copies afterwards.
        self.in_source_tree = bool(self.inplace)
        super().run()
        record = pprint.pformat(self.record, width=110, sort_dicts=False)
        text = f'"""Written by setup.py: what the build decided, and why."""\n\nRECORD = (\n{record}\n)\n'
        for root in [Path(self.build_lib), *([ROOT] if self.in_source_tree else [])]:
            path = root / RECORD_FILE
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    def build_extension(self, ext: Extension) -> None:
        record = self.record["cpu"] = {"built": False, "reason": None}
        target = Path(self.get_ext_fullpath(ext.name))
        module = BUILD_DIR / target.name
        try:
            with build_dir():
                build_cpu(module, record)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(module, target)
        except (CannotBuild, OSError) as failure:
            record["reason"] = str(failure)
            print(f"{ext.name} is not built: {failure}", file=sys.stderr)
            if env.flag("CONTAINER_KERNELS_REQUIRE_EXT"):
                raise SystemExit(f"CONTAINER_KERNELS_REQUIRE_EXT is set, but {ext.name} is not built") from failure
            # A module of an earlier build would belie the record.
            target.unlink(missing_ok=True)
            if self.in_source_tree:
                (ROOT / RECORD_FILE).with_name(target.name).unlink(missing_ok=True)
            self.extensions = [other for other in self.extensions if other is not ext]
        else:
            record["built"] = True

    def get_outputs(self) -> list[str]:
        return sorted({*super().get_outputs(), str(Path(self.build_lib, RECORD_FILE))})

    def get_output_mapping(self) -> dict[str, str]:
        mapping = super().get_output_mapping()
        if self.inplace:
            mapping[str(Path(self.build_lib, RECORD_FILE))] = str(RECORD_FILE)
        return mapping


setup(
    ext_modules=[Extension("container_kernels._C_cpu", sources=[])],
    cmdclass={"build_ext": BuildExtension},
)
