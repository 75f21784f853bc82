# SPDX-License-Identifier: MIT
"""Report of a run: lines on the screen, checkpoints, `summary.csv` and the learning curves."""

from __future__ import annotations

import csv
import io
import math
import os
import time

import torch

from training.checkpoint import atomic_write, save_checkpoint
from training.optimization import global_batch, peak_lr
from training.progress import format_seconds
from training.run import Position, Run
from training.run_state import capture, describe
from training.task import Task

SECONDS_PER_DRAWING = 5.0  # drawing takes a tenth of a second, on a GPU as long as a small epoch


def columns(task: Task) -> tuple[str, ...]:
    """The columns of summary.csv, which are also the keys of a run's history."""
    losses = [f"train_{name}" for name in ("loss", *task.part_names)]
    metrics = [f"{weights}_{name}" for weights in ("val", "ema") for name in task.metric_names]
    return "epoch", "lr", *losses, *metrics, "images_per_second", "train_seconds", "val_seconds"


class Report:
    """The records of a run in its output folder; only the main rank writes and prints (`quiet`: no epochs)."""

    def __init__(self, run: Run, quiet: bool = False):
        self.run, self.quiet = run, quiet
        self._drawn = -SECONDS_PER_DRAWING
        folder = run.output_dir
        self.last, self.best = os.path.join(folder, "last.pth"), os.path.join(folder, "best.pth")
        self.summary, self.curves = os.path.join(folder, "summary.csv"), os.path.join(folder, "curves.png")

    def add_epoch(self, metrics: dict[str, float] | None, ema_metrics: dict[str, float] | None, seconds: float) -> None:
        """Take the finished epoch, evaluated within `seconds` (metrics None: not), into the history; print its line."""
        run, position, task = self.run, self.run.position, self.run.task
        sums = {"loss": position.loss_sum, **position.parts}
        row = {
            "epoch": position.epoch + 1,
            "lr": max(group["lr"] for group in run.optimizer.param_groups),
            **{f"train_{name}": sums[name] / position.images for name in ("loss", *task.part_names)},
            **{f"val_{name}": metrics[name] if metrics else None for name in task.metric_names},
            **{f"ema_{name}": ema_metrics[name] if ema_metrics else None for name in task.metric_names},
            "images_per_second": position.images / position.seconds,
            "train_seconds": position.seconds,
            "val_seconds": seconds,
        }
        run.history.append(row)
        if run.world.is_main and not self.quiet:
            print(self._line(row), flush=True)
            warning = self.run.task.warn_of(row) if self._is_evaluated(row) else None
            if warning:
                print(f"  {warning}", flush=True)

    def _line(self, row: dict) -> str:
        epochs, task = self.run.options.epochs, self.run.task
        parts = ", ".join(f"{name} {row[f'train_{name}']:.4f}" for name in task.part_names)
        measured = f"{task.describe_epoch(row, self._best()[0])}   " if self._is_evaluated(row) else ""
        return (
            f"epoch {row['epoch']:{len(str(epochs))}d}/{epochs}   "
            f"train loss {row['train_loss']:.4f}{f' ({parts})' if parts else ''}   {measured}"
            f"{row['images_per_second']:.0f} images/s   {row['train_seconds'] + row['val_seconds']:.1f} s"
        )

    def _is_evaluated(self, row: dict) -> bool:
        return all(row[f"val_{name}"] is not None for name in self.run.task.metric_names)

    def _scores(self, row: dict) -> tuple[float, float]:
        """Of the weights, and of their moving average; -inf without one, or for an epoch without evaluation."""
        names, task = self.run.task.metric_names, self.run.task
        if not self._is_evaluated(row):
            return -math.inf, -math.inf
        score = task.score({name: row[f"val_{name}"] for name in names})
        if any(row[f"ema_{name}"] is None for name in names):
            return score, -math.inf
        return score, task.score({name: row[f"ema_{name}"] for name in names})

    def _best(self) -> tuple[float, int]:
        """Best score so far, of the weights or their average, and its epoch, the earliest if several share it."""
        scores = [(max(self._scores(row)), row["epoch"]) for row in self.run.history]
        return max(scores, key=lambda pair: (pair[0], -pair[1]))

    def save(self) -> None:
        """After an epoch: the state, the weights if they are the best so far, summary and curves."""
        if self.run.world.is_main:
            run, row = self.run, self.run.history[-1]
            save_checkpoint(self.last, capture(run))
            if self._is_evaluated(row) and self._best()[1] == row["epoch"]:
                score, ema_score = self._scores(row)
                averaged = ema_score > score
                weights = run.ema.module if averaged else run.model
                save_checkpoint(self.best, {**describe(run), "model": weights.state_dict(), "averaged": averaged})
            with atomic_write(self.summary) as file:
                file.write(_as_csv(columns(run.task), run.history))
            if row["epoch"] == run.options.epochs or time.monotonic() - self._drawn >= SECONDS_PER_DRAWING:
                with atomic_write(self.curves) as file:
                    run.task.draw_curves(file, run.history)
                self._drawn = time.monotonic()
        self.run.world.barrier()

    def save_state(self) -> None:
        """In the middle of an epoch: the state alone."""
        if self.run.world.is_main:
            save_checkpoint(self.last, capture(self.run))
        self.run.world.barrier()

    def describe_start(self) -> str:
        """Lines that say what is about to run, and where from."""
        run, options = self.run, self.run.options
        parameters = sum(parameter.numel() for parameter in run.model.parameters())
        processes = f", {run.world.size} processes" if run.world.size > 1 else ""
        arguments = "".join(f" {name}={value}" for name, value in (options.model_kwargs or {}).items())
        accumulated = f" ({options.accumulate_steps} batches each)" if options.accumulate_steps > 1 else ""
        lines = [
            f"model     {options.model}{arguments}, {parameters / 1e6:.2f} M parameters, "
            f"on {_describe_device(run)}{processes}",
            f"data      {run.task.describe_data()}",
            f"schedule  {options.opt}, {options.epochs} epochs of {run.steps} steps{accumulated}, "
            f"batch {global_batch(options, run.world.size)}, "
            f"learning rate {peak_lr(options, run.world.size):.2g} ({options.sched})",
            f"output    {run.output_dir}",
        ]
        if run.position == Position():
            return "\n".join([*lines, *run.task.describe_recipe()])
        return "\n".join([*lines, f"resumed   epoch {run.position.epoch + 1}, step {run.position.step}"])

    def describe_end(self) -> str:
        """The closing words: result, time, files."""
        history = self.run.history
        seconds = sum(row["train_seconds"] + row["val_seconds"] for row in history)
        rate = sum(row["images_per_second"] * row["train_seconds"] for row in history) / max(
            sum(row["train_seconds"] for row in history), 1e-9
        )
        return "\n".join([
            self.run.task.describe_result(history[-1], *self._best()),
            f"{len(history)} epochs in {format_seconds(seconds)}, {rate:.0f} images/s while training",
            f"best weights    {self.best}",
            f"last state      {self.last}",
            f"every epoch     {self.summary}",
            f"learning curve  {self.curves}",
        ])  # fmt: skip


def _as_csv(names: tuple[str, ...], history: list[dict]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, names)
    writer.writeheader()
    writer.writerows(history)
    return text.getvalue().encode()


def _describe_device(run: Run) -> str:
    device, dtype = run.compute.device, str(run.compute.dtype).removeprefix("torch.")
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)} in {dtype}"
    return f"the CPU ({torch.get_num_threads()} threads) in {dtype}"
