# SPDX-License-Identifier: MIT
"""The C++ compiler, and the headers that every module needs."""

import shlex
import shutil
import subprocess
import sysconfig
from pathlib import Path

from .commands import CannotBuild, Command
from .graph import locked
from .project import BUILD_DIR, SOURCES, env


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


def accepts(compiler: Command, flags: Command, program: str, folder: Path) -> bool:
    """Whether the program compiles and links with these flags; it is written into `folder`."""
    source = folder / "probe.cpp"
    source.write_text(program)
    command = [*compiler, "-Werror", *flags, source, "-o", source.with_suffix("")]
    return subprocess.run(command, capture_output=True).returncode == 0


def include_flags() -> Command:
    """Our sources, pybind11, Python."""
    return ["-I", SOURCES, "-isystem", _pybind11_include(), "-isystem", sysconfig.get_path("include")]


def _pybind11_include() -> Path:
    """A copy of pybind11's headers in the build folder.

    pip's isolation puts the originals into a new temporary folder each time, which would make every repeat a
    full build.
    """
    try:
        import pybind11
    except ImportError as error:
        raise CannotBuild(f"{error}: without build isolation, first pip install pybind11 ninja") from error
    include = BUILD_DIR / f"pybind11-{pybind11.__version__}"
    with locked(BUILD_DIR):
        if not include.exists():
            partial = include.with_suffix(".partial")
            shutil.rmtree(partial, ignore_errors=True)
            shutil.copytree(Path(pybind11.get_include(), "pybind11"), partial / "pybind11")
            partial.rename(include)
    return include
