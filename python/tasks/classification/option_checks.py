# SPDX-License-Identifier: MIT
"""Checks of the options of `train.py`: which one holds, and which combinations contradict each other."""

from __future__ import annotations

import dataclasses

from timm.data.auto_augment import augment_and_mix_transform, auto_augment_transform, rand_augment_transform

import container_kernels  # noqa: F401  registers our models with timm
from networks.option_checks import check_model_kwargs, check_model_name
from tasks.classification.options import Options
from training.errors import OptionError
from training.option_checks import check_combinations, check_values, refuse_idle, require_all, resume_options

# Without --data-path: handwritten digits, small and without left-right symmetry, learned in about a minute on a CPU.
DIGITS_RECIPE = dict(
    model="container_tiny",
    input_size=32,
    num_workers=0,
    epochs=10,
    batch_size=64,
    lr=2e-3,
    unscale_lr=True,
    warmup_epochs=3,
    warmup_lr=1e-4,
    drop_path=0.0,
    model_ema=False,
    aa="none",
    color_jitter=0.0,
    hflip=0.0,
    train_interpolation="bilinear",
    repeated_aug=False,
    reprob=0.0,
    mixup=0.0,
    cutmix=0.0,
    smoothing=0.1,
)

# Beside what any run may change when it is resumed (`training.option_checks`).
CHANGEABLE_ON_RESUME = {"data_path", "val_path", "eval"}
DEFAULTS = {field.name: field.default for field in dataclasses.fields(Options)}


def resolve(explicit: dict, saved: dict | None = None) -> Options:
    """Explicit options, then those of the resumed run, then the digits recipe, then DeiT's defaults.

    Raises:
        OptionError: an explicit option would change the recipe of the resumed run `saved`.
    """
    if saved is not None:
        return Options(**resume_options(Options, explicit, saved, CHANGEABLE_ON_RESUME))
    recipe = {} if "data_path" in explicit else DIGITS_RECIPE
    return Options(**{**recipe, **explicit})


def check(options: Options, explicit: set[str], world_size: int = 1) -> None:
    """Refuse impossible values and contradictions.

    `explicit` holds the names of the options the user gave: a default may be idle, a given option must matter.

    Raises:
        OptionError: names the option, what is allowed and what came.
    """
    check_values(options, explicit)
    _check_ranges(options)
    check_model_name(options.model)
    check_model_kwargs(options.model_kwargs)
    _check_policy(options)
    if options.eval and not (options.resume or options.initial_checkpoint):
        raise OptionError("--eval needs weights: give --resume or --initial-checkpoint")
    if options.val_path and not options.data_path:
        raise OptionError("--val-path needs --data-path")
    if options.eval:
        return  # DeiT habit: --eval is appended to the training command, whose other options then do not matter
    check_combinations(options, explicit, world_size)
    _check_mixing(options)
    refuse_idle(explicit, _conditions(options))


def _check_ranges(options: Options) -> None:
    require_all(options, ("input_size", "epoch_repeats", "recount"), lambda value: value >= 1, "1 or more")
    require_all(options, ("color_jitter", "mixup", "cutmix"), lambda value: value >= 0, "0 or more")
    probabilities = ("hflip", "reprob", "mixup_prob", "mixup_switch_prob")
    require_all(options, probabilities, lambda value: 0 <= value <= 1, "from 0 to 1")
    rates = ("drop", "drop_path", "smoothing")
    require_all(options, rates, lambda value: 0 <= value < 1, "0 or more and less than 1")
    fractions = ("crop_pct", "train_fraction", "val_fraction")
    require_all(options, fractions, lambda value: 0 < value <= 1, "more than 0 and at most 1")
    require_all(options, ("mean",), lambda value: all(0 <= part <= 1 for part in value), "three numbers from 0 to 1")
    require_all(options, ("std",), lambda value: all(part > 0 for part in value), "three numbers above 0")


def _check_policy(options: Options) -> None:
    if uses_policy(options):
        try:
            _policy_constructor(options.aa)(options.aa, {})
        except (AssertionError, KeyError, ValueError, IndexError) as error:
            raise OptionError(
                f"--aa {options.aa} is not a policy of timm, for example rand-m9-mstd0.5-inc1, augmix-m3-w3, none"
            ) from error


def mixes(options: Options) -> bool:
    """Whether images of a batch are blended (mixup or cutmix)."""
    return options.mixup > 0 or options.cutmix > 0 or options.cutmix_minmax is not None


def uses_policy(options: Options) -> bool:
    """Whether an --aa policy is in force."""
    return options.aa not in ("", "none")


def _check_mixing(options: Options) -> None:
    if options.cutmix_minmax is not None:
        low, high = options.cutmix_minmax
        if not 0 <= low < high <= 1:
            raise OptionError(f"--cutmix-minmax must be two numbers, 0 <= MIN < MAX <= 1, got {low} {high}")
    if mixes(options) and options.batch_size % 2:
        raise OptionError(
            f"--batch-size {options.batch_size} must be even with mixup or cutmix, which blend pairs of images"
        )


def _conditions(options: Options):
    """(name, whether it matters, why not) for every option that only matters together with another."""
    mixing = mixes(options)
    cutmix = options.cutmix > 0 or options.cutmix_minmax is not None
    yield "checkpoint_key", options.initial_checkpoint is not None, "without --initial-checkpoint"
    yield "cutmix", options.cutmix_minmax is None, "together with --cutmix-minmax, which replaces it"
    yield "mixup_prob", mixing, "without --mixup or --cutmix"
    yield "mixup_mode", mixing, "without --mixup or --cutmix"
    yield "mixup_switch_prob", cutmix and options.mixup > 0, "unless both --mixup and --cutmix are on"
    yield "remode", options.reprob > 0, "with --reprob 0"
    yield "recount", options.reprob > 0, "with --reprob 0"
    yield "color_jitter", not uses_policy(options) or options.color_jitter == 0, "with an --aa policy; add --aa none"


def _policy_constructor(policy: str):
    if policy.startswith("rand"):
        return rand_augment_transform
    return augment_and_mix_transform if policy.startswith("augmix") else auto_augment_transform
