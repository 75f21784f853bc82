# SPDX-License-Identifier: MIT
"""Builds the extension modules of container_kernels; the metadata is in pyproject.toml.

No torch header is included, so torch is not needed here and one build serves every version of it. A build that
cannot be done (no compiler, an error) leaves a package that installs and works without the extension: the reason
is written to ``container_kernels/_build_info.py`` and shown by ``python -m container_kernels``. The environment
variables are listed in ``container_kernels/_env.py``.
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
from pathlib import Path
from typing import NamedTuple

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
SOURCES = ROOT / "csrc"
SOABI = sysconfig.get_config_var("SOABI") or sys.implementation.cache_tag
# Objects outlive a build so that a repeat compiles only what changed; one folder per Python ABI.
BUILD_DIR = ROOT / "build" / f"extension-{SOABI}"

# No -ffast-math: NaN and infinity keep their meaning. What is given up is errno and trapping, which nobody reads.
CXX_FLAGS = [
    "-std=c++20",
    "-O3",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-Wall",
]
OPENMP_FLAG = "-fopenmp"
# From the lowest to the highest: the order of the link line (see cpu_steps).
ISA_FLAGS = {
    "baseline": [],
    "v3": ["-march=x86-64-v3"],
    "v4": ["-march=x86-64-v4", "-mprefer-vector-width=512"],
}
MEMORY_PER_JOB = 2 << 30


def load_env_module():
    """``container_kernels._env`` without importing the package, which needs torch."""
    spec = importlib.util.spec_from_file_location("_env", ROOT / "container_kernels" / "_env.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


env = load_env_module()


class CannotBuild(Exception):
    """Why there is no extension; the text goes into the record."""


class Step(NamedTuple):
    """One command and the files that it reads and writes."""

    output: Path
    inputs: list
    command: list


def run_or_explain(command, **kwargs):
    """Standard output of the command, or CannotBuild with the command and its first error lines."""
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", **kwargs
        )
    except OSError as error:
        raise CannotBuild(f"{shlex.join(map(str, command))}: {error}") from error
    if done.returncode:
        print(done.stdout, file=sys.stderr)
        raise CannotBuild(f"{first_errors(done.stdout, command)}\n(exit status {done.returncode})")
    return done.stdout


def first_errors(output, command, limit=8):
    """The command that failed (ninja prints it after FAILED) and the first lines that say error."""
    lines = output.splitlines()
    failed = [i for i, line in enumerate(lines) if line.startswith("FAILED:")]
    if failed and failed[0] + 1 < len(lines):
        shown, lines = lines[failed[0] + 1], lines[failed[0] + 2 :]
    else:
        shown = shlex.join(map(str, command))
    errors = [line for line in lines if "error" in line.lower()] or lines
    return "\n".join([shown, *errors[:limit]])


def find_compiler():
    """The C++ compiler as a command: CXX (which may carry arguments, as "ccache g++"), else the first on PATH."""
    asked = os.environ.get("CXX")
    for candidate in [asked] if asked else ["g++", "clang++", "c++"]:
        command = shlex.split(candidate)
        if command and shutil.which(command[0]):
            return command
    if asked:
        raise CannotBuild(f"the C++ compiler named by CXX is not an executable: {asked}")
    raise CannotBuild("no C++ compiler on PATH (looked for g++, clang++, c++); set CXX to one")


def accepts(compiler, flags):
    """Whether a trivial program compiles with these flags."""
    command = [*compiler, *flags, "-Werror", "-x", "c++", "-fsyntax-only", "-"]
    return subprocess.run(command, input="int main() {}", text=True, capture_output=True).returncode == 0


def job_count():
    """MAX_JOBS, else one job a core and not more than the free memory holds."""
    if os.environ.get("MAX_JOBS"):
        return max(1, int(os.environ["MAX_JOBS"]))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(fields["MemAvailable"].split()[0]) << 10
    except (OSError, KeyError):
        return cores
    return max(1, min(cores, free // MEMORY_PER_JOB))


def pybind11_include():
    """A copy of pybind11's headers in the build folder.

    With build isolation the originals lie in a new temporary folder each time, and every object would be rebuilt.
    """
    try:
        import pybind11
    except ImportError as error:
        raise CannotBuild(f"pybind11 is needed to build ({error}); pip install pybind11") from error
    include = BUILD_DIR / f"pybind11-{pybind11.__version__}"
    if not include.exists():
        partial = include.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(Path(pybind11.get_include()) / "pybind11", partial / "pybind11")
        partial.rename(include)
    return include


def find_ninja():
    """Path of ninja: the PyPI package's, else the one on PATH, else None."""
    try:
        import ninja
    except ImportError:
        return shutil.which("ninja")
    return shutil.which("ninja", path=ninja.BIN_DIR) or shutil.which("ninja")


def find_nvcc():
    """Path of nvcc, or None: CUDA_HOME, CUDA_PATH, PATH, /usr/local/cuda, in this order."""
    roots = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), None, "/usr/local/cuda"]
    folders = [Path(root, "bin") if root else None for root in roots]
    return next(filter(None, (shutil.which("nvcc", path=folder) for folder in folders)), None)


def cpu_steps(compiler, flags, levels, output):
    """Compile every source, the ``*_kernel.cpp`` ones once per ISA level, and link.

    Inline functions that several objects define (templates of the standard library) are kept once, from the first
    object on the link line. The objects are therefore linked from the lowest level to the highest, or code for v4
    could be called on a machine that has no v4.
    """
    compile_steps = []
    for level in levels:
        for source in sorted(SOURCES.rglob("*.cpp")):
            is_kernel = source.name.endswith("_kernel.cpp")
            if level != "baseline" and not is_kernel:
                continue
            compiled = BUILD_DIR / level / source.relative_to(SOURCES).with_suffix(".o")
            isa = [*ISA_FLAGS[level], f"-DCK_ISA={level}"] if is_kernel else []
            depfile = ["-MMD", "-MF", f"{compiled}.d"]
            compile_steps.append(
                Step(compiled, [source], [*compiler, *flags, *isa, *depfile, "-c", source, "-o", compiled])
            )
    objects = [step.output for step in compile_steps]
    openmp = [OPENMP_FLAG] if OPENMP_FLAG in flags else []
    link_flags = shlex.split(os.environ.get("LDFLAGS", ""))
    link = Step(output, objects, [*compiler, "-shared", *openmp, *objects, "-o", output, *link_flags])
    return compile_steps, link


def write_ninja(path, compile_steps, link):
    def escape(text):
        return str(text).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")

    def edge(rule, step):
        inputs = " ".join(map(escape, step.inputs))
        command = shlex.join(map(str, step.command)).replace("$", "$$")
        return [f"build {escape(step.output)}: {rule} {inputs}", f"  command_line = {command}"]

    lines = ["rule compile", "  command = $command_line", "  depfile = $out.d", "  deps = gcc"]
    lines += ["rule link", "  command = $command_line"]
    for step in compile_steps:
        lines += edge("compile", step)
    path.write_text("\n".join([*lines, *edge("link", link), ""]))


def run_steps(compile_steps, link, jobs, ninja):
    """Run the steps with ninja; without it everything is compiled anew."""
    for step in [*compile_steps, link]:
        step.output.parent.mkdir(parents=True, exist_ok=True)
    if ninja:
        write_ninja(BUILD_DIR / "build.ninja", compile_steps, link)
        print(run_or_explain([ninja, "-C", str(BUILD_DIR), "-j", str(jobs)]))
        return
    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(lambda step: run_or_explain(step.command), compile_steps))
    run_or_explain(link.command)


def build_cpu(output, record):
    """Build the CPU module; every decision is put into the record as soon as it is made."""
    if not env.flag("CONTAINER_KERNELS_BUILD_EXT"):
        raise CannotBuild("turned off by CONTAINER_KERNELS_BUILD_EXT")
    compiler = find_compiler()
    record["compiler"] = shlex.join(compiler)
    version = run_or_explain([*compiler, "--version"])
    record["compiler_version"] = version.splitlines()[0] if version else "unknown"
    openmp = [OPENMP_FLAG] if accepts(compiler, [OPENMP_FLAG]) else []
    levels = [level for level in ISA_FLAGS if level == "baseline" or accepts(compiler, ISA_FLAGS[level])]
    have = [f"-DCK_HAVE_{level.upper()}" for level in levels]
    flags = [*CXX_FLAGS, *openmp, *have, *shlex.split(os.environ.get("CXXFLAGS", ""))]
    ninja, jobs = find_ninja(), job_count()
    record.update(flags=shlex.join(flags), openmp=bool(openmp), isa_levels=levels, ninja=ninja, jobs=jobs)
    includes = ["-I", SOURCES, "-isystem", pybind11_include(), "-isystem", sysconfig.get_path("include")]
    run_steps(*cpu_steps(compiler, [*flags, *includes], levels, output), jobs, ninja)


def cuda_record():
    """The CUDA module has no sources yet; what is known is which compiler it would get."""
    nvcc = find_nvcc()
    if nvcc is None:
        return {
            "built": False,
            "reason": "no nvcc in CUDA_HOME, CUDA_PATH, PATH or /usr/local/cuda",
            "nvcc": None,
        }
    return {"built": False, "reason": "csrc has no CUDA sources yet", "nvcc": nvcc}


class BuildExtension(build_ext):
    """Builds with ninja what it can and writes down what it decided, also when that is: nothing."""

    def run(self):
        self.record = {"python": SOABI, "cuda": cuda_record()}
        super().run()
        text = pprint.pformat(self.record, width=110, sort_dicts=False)
        text = f'"""Written by setup.py: what the build decided, and why."""\n\nRECORD = {text}\n'
        built, in_place = self.record_paths()
        for path in [built, in_place] if self.inplace else [built]:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    def build_extension(self, ext):
        record = self.record["cpu"] = {"built": False, "reason": None}
        output = BUILD_DIR / Path(self.get_ext_filename(ext.name)).name
        target = Path(self.get_ext_fullpath(ext.name))
        # An older module would not be what the record says.
        target.unlink(missing_ok=True)
        try:
            build_cpu(output, record)
        except CannotBuild as failure:
            if env.flag("CONTAINER_KERNELS_REQUIRE_EXT"):
                raise SystemExit(
                    f"CONTAINER_KERNELS_REQUIRE_EXT is set, and {ext.name} cannot be built: {failure}"
                ) from None
            record["reason"] = str(failure)
            print(f"{ext.name} is not built: {failure}", file=sys.stderr)
            if self.inplace_requested():
                (ROOT / "container_kernels" / target.name).unlink(missing_ok=True)
            self.extensions = []
            return
        record["built"] = True
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(output, target)

    def inplace_requested(self):
        # setuptools clears inplace while it builds; it copies to the source tree afterwards.
        return self.editable_mode or bool(self.get_finalized_command("build_ext").inplace)

    def record_paths(self):
        name = Path("container_kernels", "_build_info.py")
        return Path(self.build_lib, name), ROOT / name


setup(
    ext_modules=[Extension("container_kernels._C_cpu", sources=[], optional=True)],
    cmdclass={"build_ext": BuildExtension},
)
