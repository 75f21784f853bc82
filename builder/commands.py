# SPDX-License-Identifier: MIT
"""Running compilers, and what to say when one fails."""

import shlex
import subprocess
from pathlib import Path

Command = list[str | Path]


class CannotBuild(Exception):
    """Why there is no module; the text goes into the record."""


class NothingToBuild(CannotBuild):
    """The module was turned off, or not asked for: no failure even where the extension is required."""


def quoted(command: Command) -> str:
    return shlex.join(map(str, command))


def run(command: Command | str, folder: Path | None = None) -> str:
    """What the command (a string: a line of shell) prints, run in `folder` or here.

    Raises:
        CannotBuild: it failed; the text holds the command and its first error lines.
    """
    line = command if isinstance(command, str) else quoted(command)
    try:
        done = subprocess.run(
            command,
            shell=isinstance(command, str),
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
    except OSError as error:
        raise CannotBuild(f"{line}\n{error}") from error
    if done.returncode:
        print(done.stdout)
        raise CannotBuild(f"{first_errors(done.stdout, line)}\nexit status {done.returncode}")
    return done.stdout


def first_errors(printed: str, failed: str, limit: int = 8) -> str:
    """The command that failed and the first lines that say error, or the first lines at all."""
    lines = printed.splitlines()
    for number, line in enumerate(lines[:-1]):
        if line.startswith("FAILED:"):  # ninja: the next line is the command, its output follows
            failed, lines = lines[number + 1], lines[number + 2 :]
            break
    errors = [line for line in lines if "error" in line.lower()] or lines
    return "\n".join([failed, *errors[:limit]])
