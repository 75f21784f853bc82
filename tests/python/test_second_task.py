"""The engine trains what it knows nothing of: losses, columns, state and score are the task's (`angles`)."""

import csv
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from angles import AngleOptions, AngleTask, angle_run, build_run, main
from test_data import world
from trial_runs import small_run

import train
from training.engine import train_epoch
from training.errors import CheckpointError
from training.interrupt import Interrupted, StopGuard
from training.progress import Progress
from training.report import columns
from training.task import Losses

KILLED = """
import os, signal, sys
sys.path.insert(0, {folder!r})
import angles
from training.interrupt import StopGuard
check, calls = StopGuard.check, iter(range({checks}, -1, -1))
def killing_check(self, batch=None):
    if next(calls) == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    check(self, batch)
StopGuard.check = killing_check
angles.main(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run that nothing disturbed, and its folder."""
    folder = tmp_path_factory.mktemp("angles") / "whole"
    return main(angle_run(folder)), folder


def assert_same_run(run, expected):
    timing = {"images_per_second", "train_seconds", "val_seconds"}
    for row, wanted in zip(run.history, expected.history, strict=True):
        assert {k: v for k, v in row.items() if k not in timing} == {k: v for k, v in wanted.items() if k not in timing}
    assert run.task.seen == expected.task.seen == 18
    for module, other in ((run.model, expected.model), (run.ema.module, expected.ema.module)):
        for name, tensor in module.state_dict().items():
            assert torch.equal(tensor, other.state_dict()[name]), name


def test_it_learns(tmp_path):
    history = main(angle_run(tmp_path, "--epochs", "15", "--lr", "0.03")).history
    assert history[-1]["val_degrees"] < 20 < history[0]["val_degrees"]


def test_it_reports_its_own_columns(finished):
    run, folder = finished
    with open(folder / "summary.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == columns(run.task) == (
        "epoch", "lr", "train_loss", "train_direction", "train_length", "val_degrees", "val_length", "ema_degrees",
        "ema_length", "images_per_second", "train_seconds", "val_seconds",
    )  # fmt: skip
    assert float(rows[2]["train_length"]) == run.history[2]["train_length"]
    # three steps an epoch, of 18 batches in all; the weight of the length falls to nothing
    assert run.history[2]["train_loss"] == pytest.approx(run.history[2]["train_direction"], rel=0.1)
    assert (folder / "curves.png").read_bytes() == b"3 epochs"


def test_best_is_what_the_task_says(finished):
    run, folder = finished
    best = torch.load(folder / "best.pth", weights_only=True)
    degrees = [min(row["val_degrees"], row["ema_degrees"]) for row in run.history]
    assert (best["unit"], best["task"]) == ("radian", "angle")
    assert len(best["history"]) == 1 + degrees.index(min(degrees))


@pytest.mark.parametrize("sign", [-1, 1])
def test_best_weights_are_those_of_the_better_score(tmp_path, monkeypatch, capsys, sign):
    monkeypatch.setattr(AngleTask, "score", lambda self, metrics: sign * metrics["degrees"])
    row = main(angle_run(tmp_path, "--epochs", "1", "--warmup-epochs", "0")).history[0]
    best, last = (torch.load(tmp_path / name, weights_only=True) for name in ("best.pth", "last.pth"))
    averaged = sign * row["ema_degrees"] > sign * row["val_degrees"]
    assert best["averaged"] == averaged == (sign == 1)
    score = sign * row["ema_degrees" if averaged else "val_degrees"]
    assert f"best score {score:.4f} in epoch 1" in capsys.readouterr().out
    for name, tensor in last["model_ema" if averaged else "model"].items():
        assert torch.equal(best["model"][name], tensor), name


def test_the_log_names_losses_and_measurements(tmp_path, capsys):
    run = main(angle_run(tmp_path, "--epochs", "2"))
    output = capsys.readouterr().out
    assert "data      ramps: 24 training and 10 validation images" in output
    assert "schedule  adamw, 2 epochs of 3 steps (2 batches each), batch 8, learning rate 0.01" in output
    row = run.history[0]
    assert f"train loss {row['train_loss']:.4f} (direction {row['train_direction']:.4f}, length " in output
    assert f"val degrees {row['val_degrees']:.4f}   val length {row['val_length']:.4f}   best score -" in output
    assert "\nbest score -" in output and " in epoch 2\n2 epochs in" in output


# An epoch is 3 steps, then 3 batches of validation for the weights and 3 for their average.
@pytest.mark.parametrize("checks", [0, 1, 5, 11, 18, 20])
def test_a_stopped_run_continues_bit_for_bit(finished, tmp_path, stop_at, monkeypatch, checks):
    stop_at(checks)
    with pytest.raises(Interrupted):
        main(angle_run(tmp_path))
    monkeypatch.undo()
    position = torch.load(tmp_path / "last.pth", weights_only=True)["position"]
    assert (position["epoch"], position["step"]) == (checks // 9, min(checks % 9, 3))
    assert_same_run(main(["--resume", str(tmp_path / "last.pth"), "--device", "cpu"]), finished[0])


def test_a_killed_run_continues_bit_for_bit(finished, tmp_path):
    script = KILLED.format(folder=str(Path(__file__).parent), checks=11)
    process = subprocess.run([sys.executable, "-c", script, *angle_run(tmp_path)], capture_output=True, timeout=120)
    assert process.returncode == -signal.SIGKILL, process.stderr
    assert_same_run(main(["--resume", str(tmp_path / "last.pth"), "--device", "cpu"]), finished[0])


def test_checkpoints_of_other_tasks_are_refused(finished, images, tmp_path, monkeypatch):
    folder = finished[1]
    with pytest.raises(CheckpointError, match="is of a run of angle, this program trains classification"):
        train.main(["--resume", str(folder / "last.pth"), "--data-path", str(images)])
    train.main(small_run(images, tmp_path, "--epochs", "2", "--limit-batches", "1"))
    with pytest.raises(CheckpointError, match="is of a run of classification, this program trains angle"):
        main(["--resume", str(tmp_path / "last.pth"), "--device", "cpu"])
    monkeypatch.setattr(AngleTask, "describe_weights", lambda self: {"unit": "degree"})
    with pytest.raises(CheckpointError, match="--resume: unit of the checkpoint: expected degree, got radian"):
        main(["--resume", str(folder / "last.pth"), "--device", "cpu", "--epochs", "4"])


def test_losses_have_the_names_that_were_announced(monkeypatch):
    run = build_run(AngleOptions(num_workers=0, batch_size=4), world(), StopGuard(world()), "unused")
    step = run.task.step
    monkeypatch.setattr(run.task, "step", lambda *arguments: Losses(step(*arguments).total, {"direction": 0}))
    with pytest.raises(ValueError, match=r"step: expected the losses \('direction', 'length'\).* got \('direction',\)"):
        train_epoch(run, Progress(shown=False))


def test_an_evaluation_every_few_epochs_and_at_the_end(tmp_path):
    run = main(angle_run(tmp_path, "--epochs", "5", "--eval-every", "2"))
    evaluated = [row["val_degrees"] is not None for row in run.history]
    assert evaluated == [False, True, False, True, True]
    assert [row["ema_degrees"] is not None for row in run.history] == evaluated
    best = min((min(row["val_degrees"], row["ema_degrees"]), row["epoch"]) for row in run.history if row["val_degrees"])
    content = torch.load(tmp_path / "best.pth", weights_only=True)
    assert content["history"][-1]["epoch"] == best[1]
    with open(tmp_path / "summary.csv") as file:
        assert [bool(row["val_degrees"]) for row in csv.DictReader(file)] == evaluated


def test_a_task_is_told_of_every_step(tmp_path, monkeypatch):
    calls = []

    def start(self, optimizer, update, updates):
        calls.append((update, updates))
        assert optimizer.param_groups[0]["lr"] > 0

    def adjust(self, clip_grad):
        calls.append(clip_grad)
        assert all(parameter.grad is not None for parameter in self.model.parameters())
        for parameter in self.model.parameters():
            parameter.grad = None

    monkeypatch.setattr(AngleTask, "start_update", start)
    monkeypatch.setattr(AngleTask, "adjust_gradients", adjust)
    monkeypatch.setattr(AngleTask, "finish_update", lambda self: calls.append("done"))
    run = main(angle_run(tmp_path, "--epochs", "2", "--clip-grad", "0.5"))
    assert calls == [call for update in range(6) for call in ((update, 6), 0.5, "done")]
    fresh = build_run(run.options, world(), StopGuard(world()), str(tmp_path / "fresh"))
    for parameter, other in zip(run.model.parameters(), fresh.model.parameters(), strict=True):
        assert torch.equal(parameter, other)  # nothing was learned without a gradient
