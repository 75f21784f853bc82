# SPDX-License-Identifier: MIT
"""Number of epochs that fit the given minutes: every network is measured for a few steps before the first run."""

from __future__ import annotations

import dataclasses
import math
import tempfile
import time

from comparison.plan import Trial, share_of_images
from comparison.settings import Settings
from labelled_images.sources import Source
from tasks.classification.build import build_run
from tasks.classification.options import Options
from training.distributed import World
from training.engine import fit
from training.errors import OptionError
from training.interrupt import StopGuard
from training.progress import Progress
from training.report import Report

STEPS = 20
SAFETY = 0.92
"""Part of the time that is planned with: the rest is for what a few steps do not show."""


@dataclasses.dataclass(frozen=True)
class Speed:
    """What one network was measured at; images per second, seconds to start (and compile), to save after an epoch."""

    training: float
    validation: float
    start: float
    save: float

    def seconds(self, epochs: int, training_images: float, validation_images: int) -> float:
        """A run of `epochs` epochs of so many images."""
        epoch = training_images / self.training + validation_images / self.validation + self.save
        return self.start + epochs * epoch


def measure_speed(options: Options, world: World, guard: StopGuard, sources: tuple[Source, Source]) -> Speed:
    """Two epochs of a few steps by the trainer itself; the first compiles and warms up, the second is taken.

    Raises:
        Interrupted, DataError, TrainingError: as in training.
    """
    short = dataclasses.replace(options, epochs=2, warmup_epochs=1, limit_batches=STEPS)
    with tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        run = build_run(short, world, guard, sources, folder)
        for loader in (run.task.loader, run.task.evaluation.loader):
            next(iter(loader))  # starts the workers
        ready = time.monotonic()
        fit(run, Report(run, quiet=True), Progress(shown=False))
        seconds = time.monotonic() - ready
    first, second = (row["train_seconds"] + row["val_seconds"] for row in run.history)
    compiling = max(0.0, first - second) if options.compile else 0.0  # again in every run; kernels are compiled once
    row = run.history[-1]
    return Speed(
        training=row["images_per_second"],
        validation=run.task.evaluation.batches.images / row["val_seconds"],
        start=ready - started + compiling,
        save=(seconds - first - second) / len(run.history),
    )


def choose_epochs(
    settings: Settings,
    trials: list[Trial],
    speeds: dict[str, Speed],
    training_images: int,
    validation_images: int,
    seconds_spent: float,
) -> int:
    """The most epochs, the same for every run, with which all runs together take `settings.minutes`.

    Raises:
        OptionError: less than two.
    """
    budget = SAFETY * 60 * settings.minutes - seconds_spent

    def seconds(epochs: int) -> float:
        images = [share_of_images(settings, trial) * training_images for trial in trials]
        return sum(
            speeds[trial.contender].seconds(epochs, count, validation_images)
            for trial, count in zip(trials, images, strict=True)
        )

    fixed = seconds(0)
    epochs = math.floor((budget - fixed) / (seconds(1) - fixed))
    if epochs < 2:
        needed = (seconds(2) + seconds_spent) / SAFETY / 60
        raise OptionError(
            f"--minutes {settings.minutes:g} is not enough for two epochs of {len(trials)} runs, which take about "
            f"{needed:.1f}; give more, or fewer --models, --seeds or --fractions"
        )
    return epochs
