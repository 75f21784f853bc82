"""The programs in bench/ as people start them, and the commands that their docstrings tell them to type."""

import os
import re
import shlex
import subprocess
import sys

from bench import ROOT


def run(*command, **options):
    # As from a shell: pytest would take itself for a worker of pytest-xdist, which measures nothing.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    return subprocess.run(
        [sys.executable, *map(str, command)],
        **{"env": environment, "cwd": ROOT, "timeout": 300} | options,
        capture_output=True, text=True, encoding="utf-8",
    )  # fmt: skip


def usage_lines(path):
    """The commands of a module's docstring, as words."""
    command = r"^    ((?:python -m|pytest) bench\S*(?: --\S+(?: [\w,×]+)?)*)"
    return [shlex.split(line) for line in re.findall(command, path.read_text(), re.MULTILINE)]
