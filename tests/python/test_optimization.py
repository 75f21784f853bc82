"""Schedules and groups of parameters."""

import dataclasses
import math

import pytest
import torch

from training.optimization import build_optimizer, build_scheduler, peak_lr
from training.shared_options import TrainingOptions

OPTIONS = TrainingOptions(epochs=4, lr=1.0, unscale_lr=True, warmup_epochs=0, batch_size=2)


def rates(options, steps, groups=None):
    """The learning rates of the groups in each step of the run."""
    network = torch.nn.Linear(2, 2)
    optimizer = build_optimizer(options, network, 1, groups and groups(network))
    scheduler = build_scheduler(options, optimizer, steps)
    found = []
    for update in range(options.epochs * steps):
        scheduler.step_update(update)
        found.append([group["lr"] for group in optimizer.param_groups])
    return found


def test_multistep_decays_between_epochs():
    options = dataclasses.replace(OPTIONS, sched="multistep", decay_milestones=(2, 3))
    for steps in (1, 3, 7):
        first = [groups[0] for groups in rates(options, steps)]
        assert first == pytest.approx([1.0] * 2 * steps + [0.1] * steps + [0.01] * steps)


def test_warmup_in_steps():
    options = dataclasses.replace(
        OPTIONS, sched="multistep", decay_milestones=(3,), warmup_epochs=5, warmup_steps=4, warmup_lr=0.2
    )
    first = [groups[0] for groups in rates(options, 3)]
    assert first == pytest.approx([0.2, 0.4, 0.6, 0.8, *[1.0] * 5, *[0.1] * 3])


def test_groups_have_rates_and_decays_of_their_own():
    def groups(network):
        return [{"params": [network.weight], "lr_scale": 0.1}, {"params": [network.bias], "weight_decay": 0.0}]

    network = torch.nn.Linear(2, 2)
    optimizer = build_optimizer(OPTIONS, network, 1, groups(network))
    assert [group["weight_decay"] for group in optimizer.param_groups] == [OPTIONS.weight_decay, 0]
    for slow, fast in rates(dataclasses.replace(OPTIONS, sched="multistep", decay_milestones=(1,)), 2, groups):
        assert slow == pytest.approx(0.1 * fast)


def test_a_schedule_begins_after_the_warm_up_as_official_dino_has_it():
    options = TrainingOptions(
        epochs=5, lr=1.0, unscale_lr=True, min_lr=0.2, warmup_epochs=2, warmup_lr=0.0, warmup_prefix=True
    )
    optimizer = build_optimizer(options, torch.nn.Linear(2, 2), 1)
    scheduler, found = build_scheduler(options, optimizer, steps=4), []
    for update in range(20):
        scheduler.step_update(update)
        found.append(optimizer.param_groups[0]["lr"])
    assert found[:9] == pytest.approx([i / 8 for i in range(8)] + [1.0])
    assert found[8:] == pytest.approx([0.6 + 0.4 * math.cos(math.pi * i / 12) for i in range(12)])


def test_the_batch_that_a_rate_is_for():
    class OfSixteen(TrainingOptions):
        LR_BATCH = 16

    assert peak_lr(TrainingOptions(lr=1e-3, batch_size=64), 4) == pytest.approx(5e-4)
    assert peak_lr(OfSixteen(lr=1e-4, batch_size=2, accumulate_steps=2), 8) == pytest.approx(2e-4)
