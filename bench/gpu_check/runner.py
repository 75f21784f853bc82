# SPDX-License-Identifier: MIT
"""Runs the steps of a stage, each in its time; what any of them did is kept whatever ends it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from bench import ROOT
from bench.gpu_check.results import Results
from bench.gpu_check.steps import NOT_RUN, Setting, Step, groups, time_for

# Seconds between asking a step to end and ending it: pytest prints what failed, a table has written its rows.
GRACE = 6
# A step that gets less is not begun: importing torch takes as long.
LEAST = 20
# One that the steps before it left its time is, even if ending them took some of it.
KEPT_LEAST = 2 * GRACE
# Between two archives while a step runs.
SAVE_EVERY = 10
# Ends of a process that are its own: done, done and something is wrong, not to be done here. Any other is a crash.
STATES = {0: "ok", 1: "FAILED (1)", NOT_RUN: "NOT RUN"}


@dataclass
class _Running:
    """A step's process; `end` is when it will have been ended."""

    step: Step
    process: subprocess.Popen
    begun: float
    end: float
    attempts: int = 1
    asked: bool = False


class Runner:
    """Runs the steps of one stage.

    Args:
        limit: seconds of them all, from `start` (`time.monotonic`) on.
        variables: added to the environment of every step.
    """

    def __init__(
        self, setting: Setting, results: Results, limit: float, variables: dict[str, str], start: float | None = None
    ) -> None:
        self.setting = setting
        self.results = results
        self.end = (time.monotonic() if start is None else start) + limit
        self.variables = variables
        self.saved = 0.0
        self.running: list[_Running] = []

    def run(self, steps: Sequence[Step]) -> bool:
        """Whether nothing failed. A step that is required and failed ends the stage."""
        later = list(steps)
        for group in groups(steps):
            later = later[len(group) :]
            try:
                for step in group:
                    self._begin(step, time_for(step, later, self.end - time.monotonic()))
                while self.running:
                    time.sleep(0.1)
                    for running in list(self.running):
                        self._look_after(running)
                    if time.monotonic() - self.saved > SAVE_EVERY:
                        self._save()
            finally:
                self._kill_all()
                self._save()
            if any(step.required and self.results.failed(step.name) for step in group):
                break
        return not self.results.failures()

    def _begin(self, step: Step, seconds: float) -> None:
        if seconds < (KEPT_LEAST if step.kept else LEAST):
            self.results.add(step, "no time left", 0, partial=step.partial and not step.kept)
            return
        now = time.monotonic()
        process = self._start(step, seconds)
        self.running.append(_Running(step, process, now, now + seconds, step.attempts))
        self.results.print(f"{step.name} begins: {step.what}, at most {seconds:.0f} s")

    def _start(self, step: Step, seconds: float) -> subprocess.Popen:
        words = {"work": str(self.setting.work), "soft": f"{0.85 * (seconds - GRACE):.0f}"}
        command = [sys.executable, *(_filled(word, words) for word in step.command)]
        threads = {} if step.threads is None else {"OMP_NUM_THREADS": str(step.threads)}
        with open(self.results.log(step.name), "ab") as log:
            # A group of its own, to end all of it; of this session, so that none outlives it.
            return subprocess.Popen(
                command,
                cwd=ROOT,
                env=os.environ | self.variables | threads,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                preexec_fn=os.setpgrp,
            )

    def _look_after(self, running: _Running) -> None:
        """Notice an end, begin again after a crash, ask to end when the time is nearly over, then end it."""
        status, now = running.process.poll(), time.monotonic()
        if status is None:
            if now >= running.end:
                _kill(running.process)
            elif now >= running.end - GRACE and not running.asked:
                running.asked = True
                running.process.send_signal(signal.SIGINT)
            return
        _kill(running.process)  # what it left behind
        running.attempts -= 1
        if status not in STATES and not running.asked and running.attempts and running.end - now > LEAST:
            self.results.print(f"{running.step.name} ended with status {status}, goes on")
            running.process = self._start(running.step, running.end - now)
            return
        self.running.remove(running)
        seconds = now - running.begun
        if running.asked:
            self.results.add(running.step, "out of time", seconds, partial=running.step.partial)
        else:
            state = STATES.get(status, f"FAILED ({status})")
            self.results.add(running.step, state, seconds, partial=not state.startswith("FAILED"))
        self._save()

    def _save(self) -> None:
        self.saved = time.monotonic()
        self.results.save()

    def _kill_all(self) -> None:
        """End what still runs: nothing does, unless an exception came from outside."""
        for running in self.running:
            _kill(running.process)
        for running in self.running:
            running.process.wait()
            self.results.add(running.step, "stopped", time.monotonic() - running.begun, partial=False)
        self.running.clear()


def _filled(word: str, words: dict[str, str]) -> str:
    """A word of a command with {work} and {soft} filled in; other braces belong to regular expressions."""
    for name, text in words.items():
        word = word.replace(f"{{{name}}}", text)
    return word


def _kill(process: subprocess.Popen) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return


class Stopped(SystemExit):
    """A signal asked this program to end; its exit status is a shell's for that signal."""


def stop_on_signals() -> None:
    """Raise `Stopped` for the signals that a clock or a user sends."""

    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

    def stop(number: int, _) -> None:
        # The same may come again at once, to the whole group: ending what runs is not to be interrupted.
        for other in numbers:
            signal.signal(other, signal.SIG_IGN)
        raise Stopped(128 + number)

    for number in numbers:
        signal.signal(number, stop)
