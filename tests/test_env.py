# SPDX-License-Identifier: MIT
"""Environment variables: how flags are read, and that no variable is read past the list."""

import re
from pathlib import Path

import pytest

from container_kernels import _env

PACKAGE = Path(_env.__file__).parent
FLAG = "CONTAINER_KERNELS_REQUIRE_EXT"


@pytest.mark.parametrize("text", ["1", "true", "Yes", " ON "])
def test_flag_is_true(monkeypatch, text):
    monkeypatch.setenv(FLAG, text)
    assert _env.flag(FLAG) is True


@pytest.mark.parametrize("text", ["0", "false", "No", " OFF "])
def test_flag_is_false(monkeypatch, text):
    monkeypatch.setenv(FLAG, text)
    assert _env.flag(FLAG) is False


@pytest.mark.parametrize(("name", "default"), [(FLAG, False), ("CONTAINER_KERNELS_BUILD_EXT", True)])
def test_flag_not_set_or_empty_is_the_default(monkeypatch, name, default):
    monkeypatch.delenv(name, raising=False)
    assert _env.flag(name) is default
    monkeypatch.setenv(name, "")
    assert _env.flag(name) is default


def test_flag_of_another_value_is_an_error_that_names_it(monkeypatch):
    monkeypatch.setenv(FLAG, "maybe")
    with pytest.raises(ValueError, match=f"{FLAG} must be one of 1, true, .*, off, n, got 'maybe'"):
        _env.flag(FLAG)


def test_value_is_the_text_or_the_default(monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    assert _env.value("CXX") is None
    monkeypatch.setenv("CXX", "ccache g++")
    assert _env.value("CXX") == "ccache g++"


def test_a_variable_that_is_not_listed_cannot_be_read(monkeypatch):
    monkeypatch.setenv("CONTAINER_KERNELS_UNLISTED", "1")
    with pytest.raises(KeyError, match="CONTAINER_KERNELS_UNLISTED"):
        _env.value("CONTAINER_KERNELS_UNLISTED")


def test_the_package_reads_the_environment_here_alone():
    readers = [p.name for p in PACKAGE.rglob("*.py") if re.search(r"environ\b|getenv", p.read_text())]
    assert readers == ["_env.py"]


def test_the_build_reads_the_environment_through_the_list():
    root = PACKAGE.parent
    text = "".join(path.read_text() for path in [root / "setup.py", *(root / "builder").glob("*.py")])
    assert "os.environ" not in text
    assert "getenv" not in text
    names = re.findall(r'env\.\w+\("(\w+)"\)', text)
    assert names
    assert set(names) <= set(_env.BUILD_VARIABLES)
