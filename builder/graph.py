# SPDX-License-Identifier: MIT
"""Compile and link steps, run by ninja as far as they are out of date."""

import os
import shlex
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from .commands import CannotBuild, Command, quoted, run
from .project import env

MEMORY_PER_JOB = 2 << 30


class Step(NamedTuple):
    """A command, the files it reads and the file it writes; names may be relative to the folder it runs in."""

    output: Path
    inputs: list[Path]
    command: Command
    # What a successful command prints is kept here.
    log: Path | None = None

    @property
    def line(self) -> str:
        """The command as a line of shell."""
        line = quoted(self.command)
        if self.log is None:
            return line
        log = shlex.quote(str(self.log))
        return f"{line} > {log} 2>&1 || {{ cat {log}; exit 1; }}"


def compilation(compiler: Command, source: Path, compiled: Path, log: Path | None = None) -> Step:
    """Compile a source; the headers it included are noted beside the object (both g++ and nvcc can do that)."""
    depfile: Command = ["-MMD", "-MF", f"{compiled}.d"]
    return Step(compiled, [source], [*compiler, *depfile, "-c", source, "-o", compiled], log)


def run_steps(folder: Path, compilations: list[Step], link: Step) -> None:
    """Run in `folder` what is out of date; without ninja, everything."""
    jobs, ninja = job_count(), find_ninja()
    for step in compilations:
        (folder / step.output.parent).mkdir(parents=True, exist_ok=True)
    if ninja:
        _write_ninja(folder / "build.ninja", compilations, link)
        print(run([ninja, "-C", folder, "-j", str(jobs)]))
    else:
        with ThreadPoolExecutor(jobs) as pool:
            list(pool.map(lambda step: run(step.line, folder), compilations))
        run(link.line, folder)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Create the folder and keep other builds out of it: two at a time would spoil ninja's notes."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        try:
            import fcntl
        except ImportError:  # Windows
            yield
        else:
            fcntl.flock(lock, fcntl.LOCK_EX)  # released when the file is closed
            yield


def find_ninja() -> str | None:
    """Path of ninja: the PyPI package's, else the one on PATH."""
    try:
        import ninja
    except ImportError:
        return shutil.which("ninja")
    return shutil.which("ninja", path=ninja.BIN_DIR) or shutil.which("ninja")


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


def _write_ninja(path: Path, compilations: list[Step], link: Step) -> None:
    def escaped(name: Path) -> str:
        return str(name).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")

    def edge(rule: str, step: Step) -> list[str]:
        log = "" if step.log is None else f" | {escaped(step.log)}"
        return [
            f"build {escaped(step.output)}{log}: {rule} {' '.join(map(escaped, step.inputs))}",
            f"  command_line = {step.line.replace('$', '$$')}",
            f"  dependencies = {escaped(step.output)}.d",
        ]

    lines = ["rule compile", "  command = $command_line", "  depfile = $dependencies"]
    lines += ["rule link", "  command = $command_line"]
    for step in compilations:
        lines += edge("compile", step)
    path.write_text("\n".join([*lines, *edge("link", link), ""]))
