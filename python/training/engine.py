# SPDX-License-Identifier: MIT
"""The training loop."""

from __future__ import annotations

import math
import time

import torch
from tasks.classification.build import Position, Run
from tasks.classification.metrics import evaluate
from timm.utils import dispatch_clip_grad, distribute_bn

from training.errors import DataError, TrainingError
from training.interrupt import Interrupted
from training.progress import Meter, Progress, format_seconds
from training.randomness import derive_seed, seed_everything
from training.report import Report

STEP_STREAM = 1  # sets the seeds of steps apart from those of samples
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
            metrics = evaluate(run.inference, run.evaluation, run.guard, progress)
            ema_metrics = evaluate(run.ema.module, run.evaluation, run.guard, progress) if run.ema else None
            report.add_epoch(metrics, ema_metrics)
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
    run.batches.go_to(position.epoch, position.step)
    with EpochTotals(run) as totals, progress.over(title, totals.remaining_images) as meter:
        for step, batch in enumerate(run.loader, position.step):
            run.guard.check(batch)
            seed_everything(derive_seed(options.seed, position.epoch, run.world.rank, step, STEP_STREAM))
            images, labels = run.compute.prepare(batch, run.image_format)
            images, targets = run.augment(images, labels)
            with run.compute.autocast():
                loss = run.criterion(run.network(images), targets)
            update_weights(run, loss, position.epoch * run.batches.steps + step)
            position.step = step + 1
            totals.add(loss, len(images))
            meter.advance(len(images) * run.world.size, totals.describe)
    share_batch_statistics(run)


def update_weights(run: Run, loss: torch.Tensor, update: int) -> None:
    """One optimizer step, number `update` of the run, for the mean loss of the batch."""
    run.scheduler.step_update(update)
    run.optimizer.zero_grad()
    run.scaler.scale(loss).backward()
    if run.options.clip_grad is not None:
        run.scaler.unscale_(run.optimizer)
        dispatch_clip_grad(run.model.parameters(), run.options.clip_grad)
    run.scaler.step(run.optimizer)
    run.scaler.update()
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
        self.remaining_images = (run.batches.steps - run.position.step) * run.options.batch_size * run.world.size
        self._steps_per_check = GPU_STEPS_PER_CHECK if run.compute.device.type == "cuda" else 1
        self._loss_sum = torch.zeros((), dtype=torch.float64, device=run.compute.device)
        self._images = 0
        self._mean = math.nan
        self._started = time.monotonic()

    def add(self, loss: torch.Tensor, images: int) -> None:
        """Count a step; now and then, check that the losses so far are finite."""
        self._loss_sum += loss.detach().double() * images
        self._images += images
        if self.run.position.step % self._steps_per_check == 0:
            self._check()

    def describe(self, meter: Meter) -> str:
        """Loss, learning rate and time left, for the meter."""
        position, options = self.run.position, self.run.options
        epoch_images = self.run.batches.steps * options.batch_size * self.run.world.size
        later = (options.epochs - position.epoch - 1) * epoch_images
        rate = max(group["lr"] for group in self.run.optimizer.param_groups)
        return f"loss {self._mean:.4f}  lr {rate:.1e}  run {format_seconds(meter.seconds_left(later))} left"

    def _check(self) -> None:
        self._mean = self._loss_sum.item() / max(self._images, 1)
        if not math.isfinite(self._mean):
            raise TrainingError(
                f"the loss is not finite (epoch {self.run.position.epoch + 1}, step {self.run.position.step} of "
                f"{self.run.batches.steps}). Try a lower --lr, --clip-grad 1 or --amp-dtype float32. "
                "Nothing was saved since; the checkpoint of the last epoch is intact"
            )

    def __enter__(self) -> EpochTotals:
        return self

    def __exit__(self, kind, error, traceback) -> None:
        if kind is not None and not issubclass(kind, (Interrupted, DataError)):
            return
        if self._images:
            self._check()
        sums = torch.stack([self._loss_sum, self._loss_sum.new_tensor(self._images)])
        loss_sum, images = self.run.world.sum(sums).tolist()
        position = self.run.position
        position.loss_sum += loss_sum
        position.images += int(images)
        position.seconds += time.monotonic() - self._started
