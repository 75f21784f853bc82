"""`pytest bench`, as its docstring says to type it."""

from bench_programs import run, usage_lines

from bench import ROOT


def test_pytest_command_measures():
    """As people type it: the project's --benchmark-disable must not stand in its way."""
    commands = usage_lines(ROOT / "bench" / "conftest.py")
    assert ["pytest", "bench", "--benchmark-only"] in commands and ["pytest", "bench"] in commands
    result = run("-m", "pytest", "bench", "--benchmark-only", "-k", "depthwise_3x3_forward-8x14x14-320_channels-eager")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "1 passed" in result.stdout and "% of floor" in result.stdout and "Median" in result.stdout
