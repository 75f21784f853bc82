"""A bar on a terminal, plain lines elsewhere."""

import fcntl
import os
import pty
import struct
import sys
import termios

import pytest
from trial_runs import PROGRAMS  # noqa: F401  makes `training` importable

from training.progress import Progress, format_seconds  # isort: skip


def show(log_seconds=0.0, shown=True):
    with Progress(shown, log_seconds).over("epoch 1/2", 100) as meter:
        for _ in range(4):
            meter.advance(25, lambda meter: f"loss 0.5 after {meter.done}")


def test_without_a_terminal_lines_are_plain(capsys):
    show()
    output, error = capsys.readouterr()
    lines = output.splitlines()
    assert len(lines) == 4 and error == ""
    assert lines[1].startswith("epoch 1/2  50/100  loss 0.5 after 50  ") and "images/s  0:00:0" in lines[1]
    assert all(line.isprintable() for line in lines)


def test_lines_are_rare_and_other_ranks_silent(capsys):
    show(log_seconds=60)
    show(shown=False)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("columns", [120, 0])
def test_a_terminal_gets_a_bar_if_it_has_a_width(columns, monkeypatch, capsys):
    ours, theirs = pty.openpty()
    fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        show()
        lines = capsys.readouterr().out.splitlines()
        terminal.write("end")
    drawn = os.read(ours, 65536).decode()
    os.close(ours)
    if columns:
        assert "epoch 1/2" in drawn and "0/100" in drawn and "\r" in drawn and lines == []
    else:
        assert drawn == "end" and len(lines) == 4


def test_seconds_read_as_hours_and_minutes():
    assert format_seconds(65.2) == "0:01:05"
    assert format_seconds(90061) == "1 day, 1:01:01"
