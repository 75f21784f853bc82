# SPDX-License-Identifier: MIT
"""Trains the runs of a comparison one after the other, and continues what was stopped."""

from __future__ import annotations

import dataclasses
import os
import time

from training.build import build_run
from training.checkpoint import read_run
from training.distributed import World
from training.engine import fit
from training.interrupt import StopGuard
from training.options import Options, wrap_command_line
from training.progress import Progress, format_seconds
from training.report import Report
from training.run_folder import make_folder
from training.sources import Source
from training.state import restore
from training.subset import take_fraction

from comparison.budget import choose_epochs, measure_speed
from comparison.contenders import CONTENDERS
from comparison.cost import count_cost
from comparison.plan import Trial, plan_trials, share_of_images
from comparison.record import Record, describe_conditions
from comparison.settings import RECIPE, Settings, training_options


class Session:
    """One call of the program: the runs that `record` lacks."""

    def __init__(
        self, settings: Settings, record: Record, world: World, guard: StopGuard, sources: tuple[Source, Source]
    ):
        self.settings, self.record, self.world, self.guard, self.sources = settings, record, world, guard, sources
        self.trials = plan_trials(settings)
        self.started = time.monotonic()

    def prepare(self) -> None:
        """Count and describe the contenders, and set the number of epochs unless the record has it.

        Raises:
            OptionError: the minutes are not enough.
            Interrupted: a signal came while measuring.
        """
        settings, record = self.settings, self.record
        train, val = self.sources
        record.conditions = describe_conditions(self.world.device)
        for name in settings.models:
            contender = CONTENDERS[name]
            cost = count_cost(contender, len(train.classes), RECIPE["input_size"])
            record.contenders[name] = {**dataclasses.asdict(contender), **dataclasses.asdict(cost)}
        val = take_fraction(val, settings.val_fraction, seed=0)
        record.images = {
            "validation": len(val.labels),
            **{f"{part:g}": len(take_fraction(train, part, seed=0).labels) for part in settings.fractions},
        }
        if record.epochs is None:
            record.epochs = settings.epochs or self._epochs_that_fit(len(train.labels), len(val.labels))
        record.save()

    def _epochs_that_fit(self, training_images: int, validation_images: int) -> int:
        speeds = {}
        for name in self.settings.models:
            options = self._options(Trial(name, max(self.settings.fractions), seed=0), epochs=2)
            speeds[name] = measure_speed(options, self.world, self.guard, self.sources)
            print(f"measured  {name}: {speeds[name].training:.0f} images/s", flush=True)
        spent = time.monotonic() - self.started
        return choose_epochs(self.settings, self.trials, speeds, training_images, validation_images, spent)

    def describe_start(self) -> str:
        """What is about to run."""
        settings, record = self.settings, self.record
        networks = ", ".join(f"{name} {record.contenders[name]['parameters'] / 1e6:.3f} M" for name in settings.models)
        images = ", ".join(f"{record.images[f'{part:g}']:,}" for part in settings.fractions)
        finished = sum(record.find(trial) is not None for trial in self.trials)
        recipe = dict(epochs=record.epochs, batch_size=settings.batch_size, lr=settings.lr, **RECIPE)
        return "\n".join([
            f"networks  {networks}",
            f"data      {images} training images, judged on {record.images['validation']:,}",
            f"runs      {len(self.trials)}, of which {finished} are finished",
            *(f"{'recipe' if i == 0 else '':10}{line}" for i, line in enumerate(wrap_command_line(recipe, 100))),
            f"output    {settings.output_dir}",
        ])  # fmt: skip

    def train_all(self) -> None:
        """Train what is missing; the record is saved after every run.

        Raises:
            Interrupted, DataError: the state of the run was saved.
            TrainingError: a loss is not finite.
        """
        for number, trial in enumerate(self.trials, 1):
            if self.record.find(trial) is None:
                print(f"run {number} of {len(self.trials)}: {trial}{self._time_left(number)}", flush=True)
                history = self._train(trial)
                self.record.runs.append({**dataclasses.asdict(trial), "history": history})
                self.record.save()
                print(f"    top-1 {history[-1]['val_top1']:.2f} % after {len(history)} epochs", flush=True)

    def _options(self, trial: Trial, epochs: int) -> Options:
        return training_options(self.settings, CONTENDERS[trial.contender], trial.fraction, trial.seed, epochs)

    def _train(self, trial: Trial) -> list[dict]:
        folder = os.path.join(self.settings.output_dir, trial.folder)
        make_folder(folder)
        run = build_run(self._options(trial, self.record.epochs), self.world, self.guard, self.sources, folder)
        report = Report(run, quiet=True)
        if os.path.exists(report.last):
            restore(run, read_run(report.last))
            print(f"    continues in epoch {run.position.epoch + 1}", flush=True)
        fit(run, report, Progress(shown=True, log_seconds=self.settings.log_seconds))
        return run.history

    def _time_left(self, number: int) -> str:
        """By the seconds that finished runs took for their share of the images."""
        done = [(trial, run) for trial in self.trials if (run := self.record.find(trial)) is not None]
        if not done:
            return ""
        seconds = sum(row["train_seconds"] + row["val_seconds"] for _, run in done for row in run["history"])
        rate = seconds / sum(share_of_images(self.settings, trial) for trial, _ in done)
        left = [trial for trial in self.trials[number - 1 :] if self.record.find(trial) is None]
        remaining = rate * sum(share_of_images(self.settings, trial) for trial in left)
        return f"   about {format_seconds(remaining)} left"
