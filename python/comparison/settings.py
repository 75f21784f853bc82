# SPDX-License-Identifier: MIT
"""The command line of `compare.py`, and the recipe that every network is trained with."""

from __future__ import annotations

import dataclasses
import math

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from comparison.contenders import CONTENDERS, CORE, Contender
from labelled_images.options import DataOptions
from tasks.classification.option_checks import DEFAULTS, check, resolve
from tasks.classification.options import Options
from training.compute import default_dtype
from training.errors import OptionError
from training.option_checks import check_compute, device_type
from training.options import flag, option
from training.shared_options import LoopOptions


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(LoopOptions, DataOptions):
    """Everything a comparison is told. What is None without a word about it depends on the device: see `CPU`, `GPU`."""

    data_path: str | None = option(None, "folder or tar of class folders, or of train and val trees", "data")
    num_workers: int | None = option(None, "processes that load images (default: one a core, up to 8; CPU: 0)", "data")

    models: tuple[str, ...] | None = option(
        None, "which networks (default: all; CPU: the first three)", "comparison", nargs="+", choices=tuple(CONTENDERS)
    )
    fractions: tuple[float, ...] | None = option(
        None, "parts of the training images, each compared for itself (default: 1 0.1; CPU: 0.2 0.02)", "comparison",
        nargs="+", metavar="F",
    )  # fmt: skip
    repeats: tuple[int, ...] | None = option(
        None, "for each part, passes over its images that count as one epoch (default: 1 3; 1 each with --fractions)",
        "comparison", nargs="+", metavar="N",
    )  # fmt: skip
    val_fraction: float | None = option(None, "judge on this part of the images (default: 1; CPU: 0.2)", "comparison")
    seeds: int | None = option(None, f"seeds of {', '.join(CORE)} (default: 3)", "comparison")
    other_seeds: int | None = option(None, "seeds of the others (default: 1)", "comparison")

    minutes: float | None = option(
        None, "all runs together, measured beforehand; sets the epochs (default: 9; CPU: 13)", "recipe"
    )
    epochs: int | None = option(None, "the same for every run, in place of --minutes", "recipe")
    batch_size: int | None = option(None, "images per step (default: 256; CPU: 64)", "recipe")
    lr: float | None = option(None, "peak learning rate, the same for every network (default: 2e-3)", "recipe")

    output_dir: str = option("output/comparison", "where it is kept; the same command continues it", "run")


GPU = dict(
    models=tuple(CONTENDERS), fractions=(1.0, 0.1), val_fraction=1.0, seeds=3, other_seeds=1, minutes=9.0,
    batch_size=256, lr=2e-3,
)  # fmt: skip
CPU = dict(
    models=CORE, fractions=(0.2, 0.02), val_fraction=0.2, seeds=3, other_seeds=1, minutes=13.0, batch_size=64, lr=2e-3,
    num_workers=0,
)  # fmt: skip
REPEATS = (1, 3)

# DeiT's optimizer and schedule; of its augmentations what suits small images and a few epochs.
RECIPE = dict(
    input_size=32, mean=IMAGENET_DEFAULT_MEAN, std=IMAGENET_DEFAULT_STD, opt="adamw", weight_decay=0.05,
    unscale_lr=True, sched="cosine", min_lr=1e-5, warmup_lr=1e-5, drop_path=0.0, model_ema=False, aa="none",
    color_jitter=0.0, hflip=0.5, repeated_aug=False, reprob=0.0, mixup=0.0, cutmix=0.0, smoothing=0.1,
)  # fmt: skip
PASSED_ON = (
    "data_path", "val_path", "num_workers", "val_fraction", "batch_size", "lr", "device", "amp_dtype", "channels_last",
    "compile", "log_seconds",
)  # fmt: skip
WARMUP = 0.1
"""Part of the epochs in which the learning rate rises."""


# What may differ from one call to the next without making a run another one: where it is computed and shown.
OF_THE_MACHINE = (
    "data_path", "val_path", "output_dir", "num_workers", "device", "compile", "channels_last", "log_seconds",
)  # fmt: skip
OF_THE_TRIAL = (
    "model", "model_kwargs", "train_fraction", "val_fraction", "epoch_repeats", "seed", "epochs", "warmup_epochs",
)  # fmt: skip


def complete(explicit: dict) -> Settings:
    """The explicit settings, and what the device suggests for the others.

    Raises:
        OptionError: something is missing, impossible or contradictory.
    """
    if explicit.get("data_path") is None:
        raise OptionError("--data-path is needed: CIFAR-10, or other small images, as class folders or a tar of them")
    if "minutes" in explicit and "epochs" in explicit:
        raise OptionError("--minutes sets the epochs, --epochs gives them: leave one of them out")
    device = explicit.get("device", "auto")
    check_compute(device, explicit.get("amp_dtype"))
    kind = device_type(device)
    suggested = dict(GPU if kind == "cuda" else CPU, amp_dtype=default_dtype(kind))
    if "fractions" not in explicit:
        suggested["repeats"] = REPEATS
    elif "repeats" not in explicit:
        suggested["repeats"] = (1,) * len(explicit["fractions"])
    settings = Settings(**{**suggested, **explicit})
    _check(settings)
    return settings


def _check(settings: Settings) -> None:
    for name in ("models", "fractions"):
        values = getattr(settings, name)
        if len(set(values)) != len(values):
            raise OptionError(f"{flag(name)} names something twice: {' '.join(map(str, values))}")
    for fraction in settings.fractions:
        if not 0 < fraction <= 1:
            raise OptionError(f"--fractions must be more than 0 and at most 1, got {fraction}")
    for count in settings.repeats:
        if count < 1:
            raise OptionError(f"--repeats must be 1 or more, got {count}")
    if len(settings.repeats) != len(settings.fractions):
        raise OptionError(
            f"--repeats needs one number for each of --fractions {' '.join(map(str, settings.fractions))}, "
            f"got {' '.join(map(str, settings.repeats))}"
        )
    for name in ("seeds", "other_seeds", "minutes"):
        if not 0 < getattr(settings, name) < math.inf:
            raise OptionError(f"{flag(name)} must be more than 0, got {getattr(settings, name)}")
    if settings.epochs is not None and settings.epochs < 2:
        raise OptionError(f"--epochs must be 2 or more, a warm-up and what follows, got {settings.epochs}")
    for contender in map(CONTENDERS.get, settings.models):
        for fraction in settings.fractions:
            check(training_options(settings, contender, fraction, seed=0, epochs=settings.epochs or 2), set())


def training_options(settings: Settings, contender: Contender, fraction: float, seed: int, epochs: int) -> Options:
    """What `train.py` is to do for one run: nothing in it but model and arguments depends on the contender."""
    return resolve({
        **RECIPE,
        **{name: getattr(settings, name) for name in PASSED_ON},
        "model": contender.model,
        "model_kwargs": contender.model_kwargs or None,
        "train_fraction": fraction,
        "epoch_repeats": settings.repeats[settings.fractions.index(fraction)],
        "seed": seed,
        "epochs": epochs,
        "warmup_epochs": max(1, round(WARMUP * epochs)),
    })  # fmt: skip


def describe_recipe(settings: Settings) -> dict:
    """All that is the same for every run, also what the trainer's defaults add."""
    options = training_options(settings, CONTENDERS[settings.models[0]], settings.fractions[0], seed=0, epochs=2)
    return {
        name: value
        for name, value in dataclasses.asdict(options).items()
        if name not in (*OF_THE_MACHINE, *OF_THE_TRIAL)
    }


def with_younger_options(saved: dict) -> dict:
    """The options, or the recipe, of a checkpoint or a record: an option that is younger than it had its default."""
    return {**DEFAULTS, **saved}


def same_run(options: Options, saved: dict) -> bool:
    """Whether a checkpoint with the options `saved` is of the run that `options` describe."""
    ours, saved = dataclasses.asdict(options), with_younger_options(saved)
    return all(saved[name] == value for name, value in ours.items() if name not in OF_THE_MACHINE)
