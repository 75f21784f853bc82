# SPDX-License-Identifier: MIT
"""The training loop."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator

import torch
from timm.utils import distribute_bn

from training.errors import DataError, TrainingError
from training.interrupt import Interrupted
from training.progress import Meter, Progress, format_seconds
from training.randomness import derive_seed, seed_everything
from training.report import Report
from training.run import Position, Run
from training.task import Losses

STEP_STREAM = 1  # sets the seeds of batches apart from those of samples
GPU_STEPS_PER_CHECK = 10  # reading the loss waits for the GPU


def fit(run: Run, report: Report, progress: Progress) -> None:
    """Train from the run's position to its last epoch, keeping checkpoints and the report up to date.

    Raises:
        Interrupted, DataError: the run was stopped; its state was saved.
        TrainingError: the loss is not finite; the last checkpoint is as it was.
    """
    try:
        for epoch in range(run.position.epoch, run.options.epochs):
            train_epoch(run, progress)
            started, metrics, ema_metrics = time.monotonic(), None, None
            if (epoch + 1) % run.options.eval_every == 0 or epoch + 1 == run.options.epochs:
                metrics = run.task.evaluate(run.inference, run.guard, progress)
                ema_metrics = run.task.evaluate(run.ema.module, run.guard, progress) if run.ema else None
            report.add_epoch(metrics, ema_metrics, time.monotonic() - started)
            run.position = Position(epoch=epoch + 1)
            report.save()
    except (Interrupted, DataError):
        report.save_state()
        raise


def train_epoch(run: Run, progress: Progress) -> None:
    """Take the remaining steps of the epoch the run is in; its totals end up in `run.position`."""
    options, position = run.options, run.position
    title = f"epoch {position.epoch + 1:{len(str(options.epochs))}d}/{options.epochs}"
    run.network.train()
    run.task.batches.go_to(position.epoch, run.batches_of(position.step).start)
    with EpochTotals(run) as totals, progress.over(title, run.images_from(position.step)) as meter:
        batches = iter(run.task.loader)
        for step in range(position.step, run.steps):
            taken = take_batches(run, batches, step)
            update = position.epoch * run.steps + step
            run.scheduler.step_update(update)
            run.task.start_update(run.optimizer, update, options.epochs * run.steps)
            losses = add_gradients(run, taken, step)
            update_weights(run)
            position.step = step + 1
            totals.add(losses)
            meter.advance(run.images_from(step) - run.images_from(step + 1), totals.describe)
    share_batch_statistics(run)


def take_batches(run: Run, batches: Iterator, step: int) -> list:
    """The batches of `step`, all of them read before the first is trained on: a run stops between steps, not in one.

    Raises:
        Interrupted, DataError: on every rank.
    """
    taken = [next(batches) for _ in run.batches_of(step)]
    run.guard.check(next((batch for batch in taken if isinstance(batch, DataError)), None))
    return taken


def add_gradients(run: Run, batches: list, step: int) -> list[Losses]:
    """Leave the gradient of the mean loss over the `batches` of `step`, as of one batch of all their images."""
    run.optimizer.zero_grad()
    losses = []
    for number, batch in zip(run.batches_of(step), batches, strict=True):
        seed_everything(derive_seed(run.options.seed, run.position.epoch, run.world.rank, number, STEP_STREAM))
        is_last = len(losses) == len(batches) - 1
        with contextlib.nullcontext() if is_last else run.without_reduction():
            losses.append(run.task.step(run.network, batch))
            run.scaler.scale(losses[-1].total / len(batches)).backward()
    return losses


def update_weights(run: Run) -> None:
    """One optimizer step along the gradient that was added up."""
    run.scaler.unscale_(run.optimizer)
    run.task.adjust_gradients(run.options.clip_grad)
    run.scaler.step(run.optimizer)
    run.scaler.update()
    run.task.finish_update()
    if run.ema is not None:
        run.ema.update(run.model)


def share_batch_statistics(run: Run) -> None:
    """Give every rank the running statistics of rank 0, which are also those that a checkpoint holds."""
    if run.world.size > 1:
        for model in (run.model, *([run.ema.module] if run.ema else [])):
            distribute_bn(model, run.world.size, reduce=False)


class EpochTotals:
    """The sums of one epoch: kept on the device, merged over the ranks into `run.position` at the end.

    As a context it also merges when the run is stopped, so that an epoch in two parts reports one mean.
    """

    def __init__(self, run: Run):
        self.run = run
        self._steps_per_check = GPU_STEPS_PER_CHECK if run.compute.device.type == "cuda" else 1
        self._names = run.task.part_names
        before = run.position if run.world.is_main else Position()  # a stop: one rank takes up what was summed
        sums = [before.loss_sum, *(before.parts.get(name, 0.0) for name in self._names)]
        self._sums = torch.tensor(sums, dtype=torch.float64, device=run.compute.device)
        self._images = before.images
        self._mean = math.nan
        self._started = time.monotonic()

    def add(self, losses: list[Losses]) -> None:
        """Count the batches of a step; now and then, check that the losses so far are finite."""
        images = self.run.task.batches.batch_size
        for batch in losses:
            self._sums += images * torch.stack([value.detach().double() for value in self._in_order(batch)])
            self._images += images
        if self.run.position.step % self._steps_per_check == 0:
            self._check()

    def _in_order(self, losses: Losses) -> list[torch.Tensor]:
        if losses.parts.keys() != set(self._names):
            raise ValueError(f"step: expected the losses {self._names}, as part_names says, got {tuple(losses.parts)}")
        return [losses.total, *(losses.parts[name] for name in self._names)]

    def describe(self, meter: Meter) -> str:
        """Loss, learning rate and time left, for the meter."""
        position, options = self.run.position, self.run.options
        later = (options.epochs - position.epoch - 1) * self.run.images_from(0)
        rate = max(group["lr"] for group in self.run.optimizer.param_groups)
        return f"loss {self._mean:.4f}  lr {rate:.1e}  run {format_seconds(meter.seconds_left(later))} left"

    def _check(self) -> None:
        self._mean = self._sums[0].item() / max(self._images, 1)
        if not math.isfinite(self._mean):
            raise TrainingError(
                f"the loss is not finite (epoch {self.run.position.epoch + 1}, step {self.run.position.step} of "
                f"{self.run.steps}). Try a lower --lr, --clip-grad 1 or --amp-dtype float32. "
                "Nothing was saved since; the checkpoint of the last epoch is intact"
            )

    def __enter__(self) -> EpochTotals:
        return self

    def __exit__(self, kind, error, traceback) -> None:
        if kind is not None and not issubclass(kind, (Interrupted, DataError)):
            return
        if self._images:
            self._check()
        sums = torch.cat([self._sums, self._sums.new_tensor([self._images])])
        loss_sum, *parts, images = self.run.world.sum(sums).tolist()
        position = self.run.position
        position.loss_sum, position.images = loss_sum, int(images)
        position.parts = dict(zip(self._names, parts, strict=True))
        position.seconds += time.monotonic() - self._started
