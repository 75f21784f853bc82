import signal
from pathlib import Path

import pytest
import torch
from trial_runs import write_tree  # before `training`: it knows where the programs are

from training.interrupt import StopGuard  # isort: skip


@pytest.fixture(scope="session")
def images(tmp_path_factory) -> Path:
    """A tree that no test changes."""
    return write_tree(tmp_path_factory.mktemp("images") / "colors")


@pytest.fixture
def own_images(tmp_path) -> Path:
    """A tree of this test alone."""
    return write_tree(tmp_path / "colors")


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """The models here are too small for more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def stop_at(monkeypatch):
    """stop_at(n): as if Ctrl-C came before the n-th batch, training and evaluation counted together."""

    def arrange(count):
        check, calls = StopGuard.check, iter(range(count, -1, -1))

        def counting_check(self, batch=None):
            if next(calls, 0) == 0:
                self.signum = signal.SIGINT
            check(self, batch)

        monkeypatch.setattr(StopGuard, "check", counting_check)

    yield arrange
    monkeypatch.undo()
