"""Imports go one way: programs → tasks → what they share → training; the engine knows no task, tasks know no other."""

import ast
from pathlib import Path

import pytest
from trial_runs import PROGRAMS

TRAINING = sorted((PROGRAMS / "training").rglob("*.py"))
TASKS = sorted((PROGRAMS / "tasks").rglob("*.py"))
SHARED = ("labelled_images", "networks")
BELOW_TASKS = sorted(path for folder in SHARED for path in (PROGRAMS / folder).rglob("*.py"))
WITHOUT_TASKS = {path.stem for path in PROGRAMS.glob("*.py")} | {"tasks", "comparison", "affinity_maps"}


def imported(source: str) -> set[str]:
    """The modules that `source` imports, also inside functions; relative ones with their dots."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names}
    return names


def foreign_to_shared(source: str) -> set[str]:
    return {name for name in imported(source) if name.startswith(".") or name.split(".")[0] in WITHOUT_TASKS}


def foreign_to_training(source: str) -> set[str]:
    return foreign_to_shared(source) | {name for name in imported(source) if name.split(".")[0] in SHARED}


def foreign_to_task(source: str, task: str) -> set[str]:
    others = {name for name in imported(source) if name.split(".")[0] == "tasks" and name.split(".")[1] != task}
    programs = WITHOUT_TASKS - {"tasks"}
    return others | {name for name in imported(source) if name.startswith(".") or name.split(".")[0] in programs}


@pytest.mark.parametrize("path", TRAINING, ids=lambda path: path.stem)
def test_training_imports_no_task(path):
    assert foreign_to_training(path.read_text()) == set()


@pytest.mark.parametrize("path", BELOW_TASKS, ids=lambda path: path.stem)
def test_what_tasks_share_imports_no_task(path):
    assert foreign_to_shared(path.read_text()) == set()


@pytest.mark.parametrize("path", [path for path in TASKS if path.parent.name != "tasks"], ids=lambda path: path.stem)
def test_tasks_import_no_other_task(path):
    assert foreign_to_task(path.read_text(), path.relative_to(PROGRAMS / "tasks").parts[0]) == set()


def test_what_is_forbidden_is_found():
    assert len(TRAINING) > 10 and len(TASKS) > 10 and len(BELOW_TASKS) > 8
    for line in ("import tasks.dino", "from tasks import dino", "if 1:\n    from tasks import dino", "import train"):
        assert foreign_to_training(line), line
    assert foreign_to_training("from networks.build import x") and not foreign_to_shared("from networks.build import x")
    assert foreign_to_shared("from tasks import dino") and foreign_to_shared("import train")
    assert not foreign_to_training("import timm\nfrom training.run import Run")
    assert foreign_to_task("from tasks.dino.loss import x", "detection") == {"tasks.dino.loss.x"}
    assert foreign_to_task("from tasks import dino", "detection") and foreign_to_task(
        "from comparison import x", "dino"
    )
    assert not foreign_to_task("from tasks.dino.loss import x\nfrom training.run import Run", "dino")


@pytest.mark.parametrize("program", sorted(PROGRAMS.glob("*.py")), ids=lambda path: path.stem)
def test_programs_are_short(program: Path):
    assert len(program.read_text().splitlines()) < 80
