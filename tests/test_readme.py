"""The README is true: its Python runs, its commands are ones that exist, its files are there."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PYTHON_BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
SHELL_LINES = [
    line.split("#")[0].strip()
    for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if line.strip()
]


def test_there_is_something_to_check():
    assert len(PYTHON_BLOCKS) >= 2 and len(SHELL_LINES) >= 4


@pytest.mark.parametrize("code", PYTHON_BLOCKS, ids=lambda code: code.strip().splitlines()[0][:40])
def test_python_block_runs(code, tmp_path):
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def programs():
    """Every `python some/program.py …` of the README."""
    return sorted({line for line in SHELL_LINES if re.match(r"(python|torchrun .*?) ?\S*\.py", line)})


@pytest.mark.parametrize("line", programs())
def test_program_takes_the_options_shown(line):
    words = shlex.split(line)
    index = next(i for i, word in enumerate(words) if word.endswith(".py"))
    program = ROOT / words[index]
    assert program.is_file(), program
    usage = subprocess.run([sys.executable, str(program), "--help"], capture_output=True, text=True, check=True).stdout
    options = {word.split("=")[0] for word in words[index + 1 :] if word.startswith("--")}
    known = set(re.findall(r"--[a-z0-9-]+", usage))
    assert options <= known, options - known


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\]\(([\w./-]+)\)", README))))
def test_linked_file_exists(path):
    assert (ROOT / path).exists()


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`([\w.-]+/[\w./-]*\w\.\w+)`", README))))
def test_named_file_exists(path):
    assert (ROOT / path).exists()


def test_ci_runs_the_commands_of_the_readme():
    script = (ROOT / ".ci" / "run").read_text()
    for command in ('pip install -e ".[test]"', "pytest", "python python/train.py"):
        assert command in SHELL_LINES
        assert re.search(rf"^{re.escape(command)}", script.replace("install --quiet", "install"), re.MULTILINE), command
