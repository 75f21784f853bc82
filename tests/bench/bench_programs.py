"""The programs in bench/ as people start them, and the commands that their docstrings tell them to type."""

import re
import shlex
import subprocess
import sys

from bench import ROOT


def run(*command, **options):
    return subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=ROOT, capture_output=True, text=True, encoding="utf-8", timeout=300, **options,
    )  # fmt: skip


def usage_lines(path):
    """The commands of a module's docstring, as words."""
    command = r"^    ((?:python -m|pytest) bench\S*(?: --\S+(?: [\w,×]+)?)*)"
    return [shlex.split(line) for line in re.findall(command, path.read_text(), re.MULTILINE)]
