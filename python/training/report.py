# SPDX-License-Identifier: MIT
"""What a run leaves behind: lines on the screen, checkpoints, `summary.csv` and the learning curves."""

from __future__ import annotations

import csv
import io
import os
import time

import torch
from tasks.classification.build import Position, Run
from tasks.classification.curves import draw_curves
from tasks.classification.metrics import Metrics
from tasks.classification.option_checks import DIGITS_RECIPE, peak_lr

from training.checkpoint import atomic_write, save_checkpoint
from training.options import wrap_command_line
from training.progress import format_seconds
from training.run_state import capture, describe

COLUMNS = (
    "epoch", "lr", "train_loss", "val_loss", "val_top1", "val_top5", "ema_loss", "ema_top1", "ema_top5",
    "images_per_second", "train_seconds", "val_seconds",
)  # fmt: skip
SECONDS_PER_DRAWING = 5.0  # drawing takes a tenth of a second, on a GPU as long as a small epoch


def score(row: dict) -> float:
    """What "best" means: the higher top-1 accuracy of the weights and their moving average."""
    return max(row["val_top1"], row["ema_top1"] if row["ema_top1"] is not None else 0.0)


class Report:
    """The records of a run in its output folder; only the main rank writes and prints (`quiet`: no epochs)."""

    def __init__(self, run: Run, quiet: bool = False):
        self.run, self.quiet = run, quiet
        self._drawn = -SECONDS_PER_DRAWING
        folder = run.output_dir
        self.last, self.best = os.path.join(folder, "last.pth"), os.path.join(folder, "best.pth")
        self.summary, self.curves = os.path.join(folder, "summary.csv"), os.path.join(folder, "curves.png")

    def add_epoch(self, metrics: Metrics, ema_metrics: Metrics | None) -> None:
        """Take the finished epoch into the history and print its line."""
        run, position = self.run, self.run.position
        ema = (ema_metrics.loss, ema_metrics.top1, ema_metrics.top5) if ema_metrics else (None, None, None)
        row = {
            "epoch": position.epoch + 1,
            "lr": max(group["lr"] for group in run.optimizer.param_groups),
            "train_loss": position.loss_sum / position.images,
            "val_loss": metrics.loss,
            "val_top1": metrics.top1,
            "val_top5": metrics.top5,
            **dict(zip(("ema_loss", "ema_top1", "ema_top5"), ema, strict=True)),
            "images_per_second": position.images / position.seconds,
            "train_seconds": position.seconds,
            "val_seconds": metrics.seconds + (ema_metrics.seconds if ema_metrics else 0.0),
        }
        run.history.append(row)
        if run.world.is_main and not self.quiet:
            print(self._line(row), flush=True)

    def _line(self, row: dict) -> str:
        epochs = self.run.options.epochs
        ema = "" if row["ema_top1"] is None else f" (average {row['ema_top1']:.2f} %)"
        return (
            f"epoch {row['epoch']:{len(str(epochs))}d}/{epochs}   train loss {row['train_loss']:.4f}   "
            f"val loss {row['val_loss']:.4f}   top-1 {row['val_top1']:6.2f} %{ema}   best {self._best()[0]:.2f} %   "
            f"{row['images_per_second']:.0f} images/s   {row['train_seconds'] + row['val_seconds']:.1f} s"
        )

    def _best(self) -> tuple[float, int]:
        """Best accuracy so far and its epoch, the earliest if several share it."""
        return max(((score(row), row["epoch"]) for row in self.run.history), key=lambda pair: (pair[0], -pair[1]))

    def save(self) -> None:
        """After an epoch: the state, the weights if they are the best so far, summary and curves."""
        if self.run.world.is_main:
            run, row = self.run, self.run.history[-1]
            save_checkpoint(self.last, capture(run))
            if self._best()[1] == row["epoch"]:
                averaged = row["ema_top1"] is not None and row["ema_top1"] > row["val_top1"]
                weights = run.ema.module if averaged else run.model
                save_checkpoint(self.best, {**describe(run), "model": weights.state_dict(), "averaged": averaged})
            with atomic_write(self.summary) as file:
                file.write(_as_csv(run.history))
            if row["epoch"] == run.options.epochs or time.monotonic() - self._drawn >= SECONDS_PER_DRAWING:
                with atomic_write(self.curves) as file:
                    draw_curves(file, run.history, f"{run.options.model} on {run.data_name}")
                self._drawn = time.monotonic()
        self.run.world.barrier()

    def save_state(self) -> None:
        """In the middle of an epoch: the state alone."""
        if self.run.world.is_main:
            save_checkpoint(self.last, capture(self.run))
        self.run.world.barrier()

    def describe_start(self) -> str:
        """What is about to run, and where from."""
        run, options = self.run, self.run.options
        parameters = sum(parameter.numel() for parameter in run.model.parameters())
        processes = f", {run.world.size} processes" if run.world.size > 1 else ""
        size = run.image_format.size
        peak = peak_lr(options, run.world.size)
        arguments = "".join(f" {name}={value}" for name, value in (options.model_kwargs or {}).items())
        repeats = f" ({options.epoch_repeats} times an epoch)" if options.epoch_repeats > 1 else ""
        lines = [
            f"model     {options.model}{arguments}, {parameters / 1e6:.2f} M parameters, "
            f"on {_describe_device(run)}{processes}",
            f"data      {run.data_name}: {run.training_images:,} training{repeats} and "
            f"{run.evaluation.batches.images:,} validation images, {len(run.classes)} classes, {size}×{size}",
            f"schedule  {options.opt}, {options.epochs} epochs of {run.batches.steps} steps, "
            f"batch {options.batch_size * run.world.size}, learning rate {peak:.2g} ({options.sched})",
            f"output    {run.output_dir}",
        ]
        if options.data_path is None and run.position == Position():
            recipe = {name: value for name, value in DIGITS_RECIPE.items() if getattr(options, name) == value}
            lines.append("no --data-path was given: this learns scikit-learn's handwritten digits, with")
            lines += [f"          {part}" for part in wrap_command_line(recipe, 100)]
        if run.position != Position():
            lines.append(f"resumed   epoch {run.position.epoch + 1}, step {run.position.step}")
        return "\n".join(lines)

    def describe_end(self) -> str:
        """The closing words: result, time, files."""
        history = self.run.history
        best, epoch = self._best()
        seconds = sum(row["train_seconds"] + row["val_seconds"] for row in history)
        rate = sum(row["images_per_second"] * row["train_seconds"] for row in history) / max(
            sum(row["train_seconds"] for row in history), 1e-9
        )
        return "\n".join([
            f"best top-1 {best:.2f} % in epoch {epoch}, last {history[-1]['val_top1']:.2f} %",
            f"{len(history)} epochs in {format_seconds(seconds)}, {rate:.0f} images/s while training",
            f"best weights    {self.best}",
            f"last state      {self.last}",
            f"every epoch     {self.summary}",
            f"learning curve  {self.curves}",
        ])  # fmt: skip


def _as_csv(history: list[dict]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS)
    writer.writeheader()
    writer.writerows(history)
    return text.getvalue().encode()


def _describe_device(run: Run) -> str:
    device, dtype = run.compute.device, str(run.compute.dtype).removeprefix("torch.")
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)} in {dtype}"
    return f"the CPU ({torch.get_num_threads()} threads) in {dtype}"
