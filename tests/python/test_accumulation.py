"""Several batches per step of the optimizer are one larger batch: exactly in float64, on one rank and on two.

Exactly: both are the same sum of 8 images' gradients in another order, so they differ by a few roundings of 2⁻⁵³.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from angles import AngleOptions, angle_run, build_run, main, make_loader
from test_data import world

from training.engine import add_gradients, take_batches
from training.errors import DataError, OptionError
from training.interrupt import StopGuard
from training.optimization import peak_lr

ROUNDINGS = dict(rtol=1e-12, atol=1e-14)


def gradients_of(run, images, angles):
    """Of the mean loss of all images at once."""
    run.model.zero_grad()
    run.task.step(run.model, (images, angles)).total.backward()
    return [parameter.grad.clone() for parameter in run.model.parameters()]


def assert_close(actual, expected):
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, **ROUNDINGS)


def test_gradients_are_those_of_one_larger_batch():
    options = AngleOptions(images=20, batch_size=4, accumulate_steps=2, anneal=False, num_workers=0, model_ema=False)
    run = build_run(options, world(), StopGuard(world()), "unused")
    batches, sizes = iter(run.task.loader), []
    for step in range(run.steps):
        taken = take_batches(run, batches, step)
        add_gradients(run, taken, step)
        gradients = [parameter.grad.clone() for parameter in run.model.parameters()]
        assert_close(gradients, gradients_of(run, *map(torch.cat, zip(*taken, strict=True))))
        sizes.append(len(taken))
    assert sizes == [2, 2, 1]  # the last step has fewer batches, and its own mean


def test_a_run_is_that_of_the_larger_batch(tmp_path):
    large = ("--batch-size", "8", "--accumulate-steps", "1")
    whole, parts = (main(angle_run(tmp_path / str(len(more)), "--no-anneal", *more)) for more in (large, ()))
    assert (whole.steps, parts.steps, parts.task.batches.per_epoch) == (3, 3, 6)
    assert_close(parts.model.state_dict().values(), whole.model.state_dict().values())
    for row, wanted in zip(parts.history, whole.history, strict=True):
        for name in ("lr", "train_loss", "train_length", "val_degrees", "ema_degrees"):
            assert row[name] == pytest.approx(wanted[name], rel=1e-12), name  # also one step of the schedule for both
    assert parts.history[0]["lr"] != parts.history[1]["lr"]


def test_a_batch_that_cannot_be_read_stops_before_its_step(tmp_path, monkeypatch):
    """The second of a step: what the first would have changed beside the weights could not be undone."""
    monkeypatch.setattr("angles.make_loader", lambda *arguments: Spoiled(make_loader(*arguments), number=3))
    with pytest.raises(DataError, match="spoiled"):
        main(angle_run(tmp_path / "parts"))
    monkeypatch.undo()
    last = torch.load(tmp_path / "parts" / "last.pth", weights_only=True)
    assert (last["position"]["step"], last["task_state"]) == (1, {"seen": 2})
    parts = main(["--resume", str(tmp_path / "parts" / "last.pth"), "--device", "cpu"])
    whole = main(angle_run(tmp_path / "whole"))
    assert [row["train_loss"] for row in parts.history] == [row["train_loss"] for row in whole.history]
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, parts.model.state_dict()[name]), name


class Spoiled:
    """A loader whose batch `number` cannot be read."""

    def __init__(self, loader, number):
        self.loader, self.number = loader, number

    def __iter__(self):
        for number, batch in enumerate(self.loader):
            yield DataError("spoiled") if number == self.number else batch


def test_the_learning_rate_follows_the_global_batch():
    assert peak_lr(AngleOptions(batch_size=64, accumulate_steps=4), 2) == pytest.approx(5e-4)


def test_more_batches_than_an_epoch_has_are_refused(tmp_path):
    with pytest.raises(OptionError, match="--accumulate-steps 7 is more than an epoch's 6 batches"):
        main(angle_run(tmp_path, "--accumulate-steps", "7"))
    with pytest.raises(OptionError, match="--accumulate-steps must be 1 or more, got 0"):
        main(angle_run(tmp_path, "--accumulate-steps", "0"))


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What `accumulating_ranks.py` recorded on each of two ranks."""
    folder = tmp_path_factory.mktemp("accumulating_ranks")
    script = Path(__file__).with_name("accumulating_ranks.py")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    result = subprocess.run(
        [*launcher, script, folder],
        capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    return [torch.load(folder / f"rank{rank}.pth", weights_only=True) for rank in (0, 1)]


def test_two_ranks_have_the_gradient_of_all_their_images(ranks):
    run = build_run(AngleOptions(anneal=False, num_workers=0, batch_size=4), world(), StopGuard(world()), "unused")
    run.model.load_state_dict(ranks[0]["weights"])
    first, second = (rank["steps"] for rank in ranks)
    assert [len(step["batches"]) for step in first] == [2, 2, 1]
    for one, other in zip(first, second, strict=True):
        everything = [torch.cat(tensors) for tensors in zip(*one["batches"], *other["batches"], strict=True)]
        assert_close(one["gradients"], gradients_of(run, *everything))
        assert_close(one["gradients"], other["gradients"])


def test_ranks_exchange_gradients_once_per_step(ranks):
    for rank in ranks:
        assert [step["reductions"] for step in rank["steps"]] == [1, 2, 3]


def test_losses_are_averaged_over_ranks_by_name(ranks):
    """Rank 1 gives its losses in another order than rank 0."""
    for row in ranks[0]["accumulated"]["history"]:
        assert row["train_loss"] == pytest.approx(row["train_direction"] + 2 * row["train_length"], rel=1e-12)


def test_two_ranks_train_as_with_the_larger_batch(ranks):
    parts, whole = ranks[0]["accumulated"], ranks[0]["large"]
    assert_close(parts["weights"].values(), whole["weights"].values())
    for name in ("lr", "train_loss", "train_direction", "train_length", "val_degrees"):
        values = [row[name] for row in parts["history"]]
        assert values == pytest.approx([row[name] for row in whole["history"]], rel=1e-12), name
        assert values == [row[name] for row in ranks[1]["accumulated"]["history"]], name
