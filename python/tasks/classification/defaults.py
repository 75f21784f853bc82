# SPDX-License-Identifier: MIT
"""Defaults that give way to what was given: only two given options contradict each other."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

from tasks.classification.option_checks import mixes
from tasks.classification.options import Options
from training.optimization import ends_at_min_lr, has_warmup, peak_lr
from training.options import flag

PART_OF_PEAK = 1 / 100
"""Where the learning rate starts and ends if the defaults are above its peak: DeiT's ends so on its 8 × 128 images."""


def give_way(options: Options, given: Collection[str], world_size: int = 1) -> tuple[Options, list[str]]:
    """`options` without contradictions between an option in `given` and one that is not, and a line for each change."""
    lines = []

    def replace(reason: str, **values) -> None:
        nonlocal options
        for name, value in values.items():
            lines.append(f"{flag(name)} {value:g} in place of the default {getattr(options, name):g}, {reason}")
        options = dataclasses.replace(options, **values)

    if options.warmup_steps is None and options.warmup_epochs >= options.epochs:
        if "warmup_epochs" not in given:
            replace(f"to be less than --epochs {options.epochs}", warmup_epochs=options.epochs - 1)
        elif "epochs" not in given:
            reason = f"to follow --warmup-epochs {options.warmup_epochs}"
            replace(reason, epochs=options.warmup_epochs + options.epochs)
    peak = peak_lr(options, world_size)
    matters = {"warmup_lr": has_warmup(options), "min_lr": ends_at_min_lr(options)}
    for name in matters:
        if matters[name] and name not in given and getattr(options, name) > peak > 0:
            replace(f"which is above the peak learning rate {peak:g}", **{name: peak * PART_OF_PEAK})
    if options.batch_size % 2 and mixes(options) and not {"mixup", "cutmix", "cutmix_minmax"} & set(given):
        reason = f"which blends pairs of images and --batch-size {options.batch_size} is odd"
        replace(reason, mixup=0.0, cutmix=0.0)
    return options, lines
