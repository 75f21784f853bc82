# SPDX-License-Identifier: MIT
"""Stopping early without losing anything: Ctrl-C, SIGTERM and unreadable images end a run between two steps."""

from __future__ import annotations

import os
import signal
import time

from training.distributed import World
from training.errors import DataError, LostWorkerError

_CONTINUE, _SIGNALLED, _BAD_DATA = range(3)


class Interrupted(Exception):
    """The run was asked to stop by a signal; `signum` is it."""

    def __init__(self, signum: int):
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


class StopGuard:
    """Turns the first SIGINT or SIGTERM into a request that all ranks honor before the same step.

    Active inside its `with` block. A second Ctrl-C ends the process at once. torchrun passes on a Ctrl-C that its
    workers already got from the terminal, so signals within a second of the first are taken for the same one.
    """

    def __init__(self, world: World):
        self.world = world
        self.signum = 0
        self._since = 0.0
        self._previous = {}

    def __enter__(self) -> StopGuard:
        for signum in (signal.SIGINT, signal.SIGTERM):
            self._previous[signum] = signal.signal(signum, self._receive)
        return self

    def __exit__(self, *_) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)

    def _receive(self, signum: int, frame) -> None:
        if self.signum and signum == signal.SIGINT and time.monotonic() - self._since > 1:
            os._exit(128 + signum)
        if not self.signum:
            self.signum, self._since = signum, time.monotonic()
            if self.world.is_main:
                print(f"\n{signal.Signals(signum).name}: saving after this step (again to leave at once)", flush=True)

    def check(self, batch=None) -> None:
        """Raise on every rank if any rank was signalled or could not read its batch.

        Raises:
            Interrupted: a signal came.
            DataError: `batch` is one, here or on another rank.
        """
        code = _BAD_DATA if isinstance(batch, DataError) else _SIGNALLED if self.signum else _CONTINUE
        if self.signum and isinstance(batch, LostWorkerError):
            code = _SIGNALLED  # the signal went to the whole process group, workers too
        agreed = self.world.agree(code)
        if agreed == _BAD_DATA:
            raise batch if isinstance(batch, DataError) else DataError("another rank could not read an image")
        if agreed == _SIGNALLED:
            raise Interrupted(self.signum or signal.SIGTERM)
