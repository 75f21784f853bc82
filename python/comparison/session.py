# SPDX-License-Identifier: MIT
"""Trains the runs of a comparison one after the other, and continues what was stopped."""

from __future__ import annotations

import dataclasses
import os
import time

from comparison.budget import choose_epochs, measure_speed
from comparison.contenders import CONTENDERS
from comparison.cost import count_cost
from comparison.plan import Trial, plan_trials, share_of_images
from comparison.record import Record, as_json, describe_conditions
from comparison.settings import RECIPE, Settings, describe_recipe, same_run, training_options, with_younger_options
from labelled_images.sources import Source, digest_images
from tasks.classification.build import build_run
from tasks.classification.options import Options
from tasks.classification.subset import take_fraction
from training.checkpoint import read_run
from training.distributed import World
from training.engine import fit
from training.errors import CheckpointError, DataError, OptionError, TrainingError
from training.interrupt import Interrupted, StopGuard
from training.options import wrap_command_line
from training.progress import Progress, format_seconds
from training.report import Report
from training.run import Run
from training.run_folder import make_folder
from training.run_state import restore


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
            OptionError: the minutes are not enough, a part has fewer images than a batch, or the data, the recipe or a
                network is not what the comparison has begun with; the record is as it was then.
            Interrupted: a signal came while measuring.
            TrainingError: a network diverges while it is measured.
        """
        settings, record = self.settings, self.record
        train, val = self.sources
        data = dict(classes=train.classes, training_images=digest_images(train), validation_images=digest_images(val))
        data = record.unchanged("--data-path, --val-path", record.data, data)
        begun_with = record.recipe and as_json(with_younger_options(record.recipe))
        recipe = record.unchanged("the recipe", begun_with, describe_recipe(settings))
        contenders = {name: self._describe(name, len(train.classes)) for name in settings.models}
        val = take_fraction(val, settings.val_fraction, seed=0)
        images = {f"{part:g}": len(take_fraction(train, part, seed=0).labels) for part in settings.fractions}
        for count, part, repeats in zip(images.values(), settings.fractions, settings.repeats, strict=True):
            if count * repeats < settings.batch_size:
                raise OptionError(
                    f"--batch-size {settings.batch_size} is more than an epoch's {count * repeats} images with "
                    f"--fractions {part:g} ({count} of {len(train.labels)}) and --repeats {repeats}"
                )
        self.epochs_were_set = record.epochs is not None
        if not self.epochs_were_set:
            record.epochs = settings.epochs or self._epochs_that_fit(len(train.labels), len(val.labels))
        record.settings, record.data, record.recipe = as_json(dataclasses.asdict(settings)), data, recipe
        record.contenders.update(contenders)
        record.images = {"validation": len(val.labels), **images}
        record.save()

    def _describe(self, name: str, num_classes: int) -> dict:
        contender = CONTENDERS[name]
        cost = count_cost(contender, num_classes, RECIPE["input_size"])
        network = dict(model=contender.model, model_kwargs=contender.model_kwargs, parameters=cost.parameters)
        network = self.record.unchanged(f"the network {name}", self.record.contenders.get(name), network)
        return {**dataclasses.asdict(contender), **dataclasses.asdict(cost), **network}

    def _epochs_that_fit(self, training_images: int, validation_images: int) -> int:
        speeds = {}
        for name in self.settings.models:
            options = self._options(Trial(name, max(self.settings.fractions), seed=0), epochs=2)
            try:
                speeds[name] = measure_speed(options, self.world, self.guard, self.sources)
            except TrainingError as error:
                raise TrainingError(f"{name} diverges in its first steps: choose a lower --lr") from error
            print(f"measured  {name}: {speeds[name].training:.0f} images/s", flush=True)
        spent = time.monotonic() - self.started
        return choose_epochs(self.settings, self.trials, speeds, training_images, validation_images, spent)

    def describe_start(self) -> str:
        """What is about to run."""
        settings, record = self.settings, self.record
        networks = ", ".join(f"{name} {record.contenders[name]['parameters'] / 1e6:.3f} M" for name in settings.models)
        images = ", ".join(f"{record.images[f'{part:g}']:,}" for part in settings.fractions)
        finished = sum(map(record.is_settled, self.trials))
        kept = ["epochs    as when the comparison began, whatever --minutes"] if self.epochs_were_set else []
        recipe = dict(epochs=record.epochs, batch_size=settings.batch_size, lr=settings.lr, **RECIPE)
        return "\n".join([
            f"networks  {networks}",
            f"data      {images} training images, judged on {record.images['validation']:,}",
            f"runs      {len(self.trials)}, of which {finished} are finished",
            *(f"{'recipe' if i == 0 else '':10}{line}" for i, line in enumerate(wrap_command_line(recipe, 100))),
            *kept,
            f"output    {settings.output_dir}",
        ])  # fmt: skip

    def train_all(self) -> None:
        """Train what is missing; the record is saved after every run. What diverges is recorded as that.

        Raises:
            Interrupted, DataError: the state of the run was saved.
            CheckpointError: what an unfinished run has left is damaged, or another run's.
        """
        record, conditions = self.record, describe_conditions(self.world.device)
        for number, trial in enumerate(self.trials, 1):
            if not record.is_settled(trial):
                print(f"run {number} of {len(self.trials)}: {trial}{self._time_left(number)}", flush=True)
                run, diverged = self._train(trial)
                if diverged:
                    epoch = run.position.epoch + 1
                    record.diverged.append({**dataclasses.asdict(trial), "epoch": epoch})
                    print(f"    diverged in epoch {epoch}: the loss is not finite", flush=True)
                else:
                    machine = record.number_of(conditions)
                    record.runs.append({**dataclasses.asdict(trial), "conditions": machine, "history": run.history})
                    print(f"    top-1 {run.history[-1]['val_top1']:.2f} % after {len(run.history)} epochs", flush=True)
                record.save()

    def _options(self, trial: Trial, epochs: int) -> Options:
        return training_options(self.settings, CONTENDERS[trial.contender], trial.fraction, trial.seed, epochs)

    def _train(self, trial: Trial) -> tuple[Run, bool]:
        """The run of `trial`, and whether it diverged."""
        folder = os.path.join(self.settings.output_dir, trial.folder)
        make_folder(folder)
        run = build_run(self._options(trial, self.record.epochs), self.world, self.guard, self.sources, folder)
        report = Report(run, quiet=True)
        if os.path.exists(report.last):
            self._continue(run, report.last)
        try:
            fit(run, report, Progress(shown=True, log_seconds=self.settings.log_seconds))
        except TrainingError:
            return run, True
        except (Interrupted, DataError):
            print("saved; continue with the same command", flush=True)
            raise
        return run, False

    def _continue(self, run: Run, last: str) -> None:
        """Bring `run` to the state that it, and no other run, has left."""
        try:
            content = read_run(last, run.task.name)
            if not same_run(run.options, content["options"]):
                raise CheckpointError(f"{last} is of a run with other options")
            restore(run, content)
        except CheckpointError as error:
            raise CheckpointError(f"{error}; delete the folder {run.output_dir} to train that run anew") from error
        print(f"    continues in epoch {run.position.epoch + 1}", flush=True)

    def _time_left(self, number: int) -> str:
        """By the seconds that finished runs took for their share of the images."""
        done = [(trial, run) for trial in self.trials if (run := self.record.find(trial)) is not None]
        if not done:
            return ""
        seconds = sum(row["train_seconds"] + row["val_seconds"] for _, run in done for row in run["history"])
        rate = seconds / sum(share_of_images(self.settings, trial) for trial, _ in done)
        left = [trial for trial in self.trials[number - 1 :] if not self.record.is_settled(trial)]
        remaining = rate * sum(share_of_images(self.settings, trial) for trial in left)
        return f"   about {format_seconds(remaining)} left"
