# SPDX-License-Identifier: MIT
"""Loading batches by worker processes, one of which may be killed."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

from torch.utils.data import DataLoader

from training.errors import LostWorkerError

END = object()


class Loader(DataLoader):
    """Delivers a LostWorkerError in place of a batch where a worker was killed: the loop can save before it stops.

    PyTorch raises from a signal handler, which may be in the middle of a step; here only waiting for a batch ends so.
    """

    def __iter__(self) -> Iterator:
        try:
            batches = super().__iter__()
            waiting = _raise_only_while_waiting()
            while True:
                with waiting:
                    batch = next(batches, END)
                if batch is END:
                    return
                yield batch
        except Exception as error:
            if not (self.num_workers and _is_death(error)):
                raise
            yield LostWorkerError(_describe_death(error))


class _WhileWaiting:
    """Passes SIGCHLD on to PyTorch's handler inside its `with` block alone, and asks it once at the beginning."""

    def __init__(self, handler):
        self.handler = handler
        self.active = False

    def __call__(self, signum: int, frame) -> None:
        if self.active:
            self.handler(signum, frame)

    def __enter__(self) -> None:
        self.active = True
        self.handler(signal.SIGCHLD, None)

    def __exit__(self, *_) -> None:
        self.active = False


def _raise_only_while_waiting() -> contextlib.AbstractContextManager:
    """The context of waiting for a batch. PyTorch sets its handler with the first workers, once per process."""
    handler = signal.getsignal(signal.SIGCHLD)
    if not callable(handler):  # no workers
        return contextlib.nullcontext()
    if not isinstance(handler, _WhileWaiting):
        handler = _WhileWaiting(handler)
        signal.signal(signal.SIGCHLD, handler)
    return handler


def _is_death(error: Exception) -> bool:
    """Whether a worker is gone: PyTorch says so, or its connection broke; what a worker raised itself is another."""
    broken = isinstance(error, (EOFError, OSError)) and "in DataLoader worker process" not in str(error)
    return broken or (isinstance(error, RuntimeError) and "DataLoader worker (pid" in str(error))


def _describe_death(error: Exception) -> str:
    reason = str(error).strip().rstrip(".") or "its connection broke"
    cause = " Most likely the machine ran out of memory; fewer --num-workers or a smaller --batch-size need less"
    other = "signal" in reason and "Killed" not in reason  # PyTorch has said more of it
    return f"a process that loads data has ended: {reason}.{'' if other else cause}"
