"""The README and the pages in docs/ are true: their Python runs, their commands exist, their files are there."""

import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
import timm

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
TEXT = {page: page.read_text() for page in PAGES}


def python_blocks():
    for page, text in TEXT.items():
        for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
            yield pytest.param(code, id=f"{page.name}: {code.strip().splitlines()[0][:40]}")


def shell_lines(text):
    for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            command = line.split("#")[0].strip()
            if command:
                yield command


SHELL_LINES = list(shell_lines(TEXT[README]))


def test_there_is_something_to_check():
    assert len(list(python_blocks())) >= 8 and len(SHELL_LINES) >= 4 and len(PAGES) >= 2


@pytest.mark.parametrize("code", list(python_blocks()))
def test_python_block_runs(code, tmp_path, monkeypatch):
    # This process has imported it, which registers the models; a reader's has not.
    assert re.search(r"^(from|import) container_kernels\b", code, re.MULTILINE)
    if re.search(r"^from transformers\b", code, re.MULTILINE):
        pytest.importorskip("transformers", reason="needs the extra integrations")
    monkeypatch.chdir(tmp_path)
    # What a page puts there is gone afterwards.
    monkeypatch.setitem(sys.modules, "MultiScaleDeformableAttention", None)
    exec(compile(code, "page", "exec"), {"__name__": "__main__"})


def programs():
    """Every `python some/program.py …` and `python -m bench.program …` of the pages."""
    lines = {line for text in TEXT.values() for line in shell_lines(text)}
    return sorted(line for line in lines if re.match(r"(python|torchrun .*?) ?\S*\.py|python -m bench\.", line))


@pytest.mark.parametrize("line", programs())
def test_program_takes_the_options_shown(line, monkeypatch, capsys):
    words = shlex.split(line)
    index = next(i for i, word in enumerate(words) if word.endswith(".py") or word.startswith("bench."))
    monkeypatch.setattr(sys, "argv", [words[index], "--help"])
    with pytest.raises(SystemExit) as end:
        if words[index - 1] == "-m":
            runpy.run_module(words[index], run_name="__main__")
        else:
            script = ROOT / words[index]
            monkeypatch.syspath_prepend(script.parent)  # as Python does
            runpy.run_path(str(script), run_name="__main__")
    assert not end.value.code
    usage = capsys.readouterr().out
    options = {word.split("=")[0] for word in words[index + 1 :] if word.startswith("--")}
    known = set(re.findall(r"--[a-z0-9-]+", usage))
    assert options <= known, options - known


def named_files():
    for page, text in TEXT.items():
        for path in sorted(set(re.findall(r"\]\(((?!https?:)[\w./-]+)\)", text))):  # links, from the page's folder
            yield pytest.param(page.parent / path, id=f"{page.name}: {path}")
        for path in sorted(set(re.findall(r"`([\w.-]+/[\w./-]*\w\.\w+)`", text))):  # names, from the root
            yield pytest.param(ROOT / path, id=f"{page.name}: {path}")


@pytest.mark.parametrize("path", list(named_files()))
def test_named_file_exists(path):
    assert path.exists()


def parameter_counts():
    """(model, millions of parameters) of every table row that begins with a registered model's name."""
    for page, text in TEXT.items():
        for name, row in re.findall(r"^\| `(\w+)` \|(.*)\|$", text, re.MULTILINE):
            for millions in re.findall(r"\| ([\d.]+) M \|", f"|{row}|"):
                yield pytest.param(name, float(millions), id=f"{page.name}: {name}")


@pytest.mark.parametrize(("name", "millions"), list(parameter_counts()))
def test_parameters_in_tables(name, millions):
    model = timm.create_model(name, device="meta")
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6, 1) == millions


def test_ci_runs_the_commands_of_the_readme():
    script = (ROOT / ".ci" / "run").read_text()
    for command in ('pip install -e ".[test]"', "pytest -n auto", "python python/train.py"):
        assert command in SHELL_LINES
        assert re.search(rf"^{re.escape(command)}", script.replace("install --quiet", "install"), re.MULTILINE), command
