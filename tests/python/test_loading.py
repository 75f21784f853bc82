"""A killed worker ends a run between two steps, with its state saved."""

import multiprocessing
import os
import re
import signal
import time

import pytest
import torch
from test_data import FORMAT, world
from test_training import assert_same_run
from torch.utils.data import get_worker_info
from trial_runs import small_run

import train
import validate
from labelled_images.evaluation_transform import evaluation_transform
from labelled_images.loader import ImageDataset, image_loader
from labelled_images.sources import FolderSource
from tasks.classification.data import training_batches
from tasks.classification.options import Options
from training.errors import DataError, LostWorkerError
from training.interrupt import Interrupted, StopGuard
from training.loading import Loader

MEMORY = r"a process that loads data has ended: .*Most likely the machine ran out of memory; fewer --num-workers"


@pytest.fixture
def kill_at(monkeypatch):
    """kill_at(epoch, position): the worker that prepares this image, in an evaluation if `epoch` is None, is killed."""

    def arrange(epoch, position, kill=lambda: os.kill(os.getpid(), signal.SIGKILL)):
        get = ImageDataset.__getitem__

        def fatal(self, key):
            index, counters = key
            reached = (epoch, position) == ((None, index) if counters is None else counters[1::2])
            if get_worker_info() is not None and reached:
                kill()
            return get(self, key)

        monkeypatch.setattr(ImageDataset, "__getitem__", fatal)

    return arrange


def test_a_run_that_lost_a_worker_continues_where_it_was(images, tmp_path, kill_at, monkeypatch, capsys):
    expected = train.main(small_run(images, tmp_path / "whole", "--epochs", "2"))
    kill_at(epoch=1, position=13)
    with pytest.raises(DataError, match=MEMORY):
        train.main(small_run(images, tmp_path / "run", "--epochs", "2", "--num-workers", "2"))
    last = tmp_path / "run" / "last.pth"
    assert f"saved; continue with: python python/train.py --resume {last}" in capsys.readouterr().out
    assert torch.load(last, weights_only=True)["position"]["epoch"] == 1
    monkeypatch.undo()
    assert_same_run(train.main(["--resume", str(last), "--num-workers", "0"]), expected)


def test_a_signal_to_the_whole_process_group_is_an_interrupt(images, tmp_path, kill_at, monkeypatch):
    def terminate():
        for process in (os.getppid(), os.getpid()):
            os.kill(process, signal.SIGTERM)

    expected = train.main(small_run(images, tmp_path / "whole", "--epochs", "2"))
    kill_at(epoch=1, position=13, kill=terminate)
    with pytest.raises(Interrupted, match="SIGTERM"):
        train.main(small_run(images, tmp_path / "run", "--epochs", "2", "--num-workers", "2"))
    monkeypatch.undo()
    assert_same_run(train.main(["--resume", str(tmp_path / "run" / "last.pth"), "--num-workers", "0"]), expected)


def test_a_worker_that_a_signal_took_along_is_no_error():
    guard = StopGuard(world())
    with pytest.raises(LostWorkerError):
        guard.check(LostWorkerError("killed"))
    guard.signum = signal.SIGTERM
    with pytest.raises(Interrupted):
        guard.check(LostWorkerError("killed"))
    with pytest.raises(DataError, match="damaged"):
        guard.check(DataError("damaged"))


def test_an_evaluation_that_lost_a_worker_says_so(images, tmp_path, kill_at):
    train.main(small_run(images, tmp_path / "run", "--epochs", "2", "--limit-batches", "1"))
    kill_at(epoch=None, position=7)
    with pytest.raises(DataError, match=MEMORY):
        validate.main(["--checkpoint", str(tmp_path / "run" / "best.pth"), "--num-workers", "1", "--device", "cpu"])


@pytest.fixture
def batches(images):
    """An iteration by one worker that has begun, and the worker."""
    source = FolderSource(str(images / "train"))
    order = training_batches(source, Options(batch_size=2, repeated_aug=False), world())
    others = set(multiprocessing.active_children())  # of tests before this one
    iteration = iter(image_loader(source, evaluation_transform(FORMAT), order, 1, world()))
    assert next(iteration)[0].shape == (2, 3, 32, 32)
    (worker,) = set(multiprocessing.active_children()) - others
    yield iteration, worker
    iteration.close()
    worker.kill()


def test_a_step_is_not_interrupted_by_the_death_of_a_worker(batches):
    iteration, worker = batches
    worker.kill()
    started = time.monotonic()
    while time.monotonic() - started < 0.5:  # a step: PyTorch's handler would raise here
        time.sleep(0.05)
    assert isinstance(next(iteration), DataError)
    assert next(iteration, "end") == "end"


def test_workers_leave_ctrl_c_to_the_main_process(batches):
    iteration, worker = batches
    os.kill(worker.pid, signal.SIGINT)
    assert sum(len(images) for images, _ in iteration) == 22


@pytest.fixture
def failing_with(monkeypatch):
    """failing_with(error): a loader whose iteration raises it."""

    def arrange(error, workers=1):
        def fail(self):
            raise error
            yield

        monkeypatch.setattr("training.loading.DataLoader.__iter__", fail)
        return Loader([], num_workers=workers)

    return arrange


def test_another_signal_is_not_taken_for_memory(failing_with):
    message = "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that ... shared memory. "
    (batch,) = failing_with(RuntimeError(message))
    assert str(batch) == f"a process that loads data has ended: {message.strip()}"


@pytest.mark.parametrize("error", [EOFError(), ConnectionResetError(104, "Connection reset by peer")])
def test_a_broken_connection_is_a_lost_worker(failing_with, error):
    (batch,) = failing_with(error)
    assert isinstance(batch, LostWorkerError) and re.match(MEMORY, str(batch))


@pytest.mark.parametrize("kind", [RuntimeError, EOFError, OSError, ValueError])
def test_what_loading_raised_is_raised_on(failing_with, kind):
    with pytest.raises(kind, match="Caught"):
        list(failing_with(kind("Caught it in DataLoader worker process 0.")))
    with pytest.raises(kind, match="here"):
        list(failing_with(kind("here"), workers=0))
