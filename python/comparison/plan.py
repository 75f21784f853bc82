# SPDX-License-Identifier: MIT
"""Runs of a comparison, in order."""

from __future__ import annotations

import dataclasses

from comparison.contenders import CORE
from comparison.settings import Settings


@dataclasses.dataclass(frozen=True)
class Trial:
    """One run: a contender on a part of the images with a seed."""

    contender: str
    fraction: float
    seed: int

    @property
    def folder(self) -> str:
        """Its folder's name."""
        return f"{self.contender}-{self.fraction:g}-seed{self.seed}"

    def __str__(self) -> str:
        return f"{self.contender}, {100 * self.fraction:g} % of the images, seed {self.seed}"


def plan_trials(settings: Settings) -> list[Trial]:
    """The core question first, seed by seed, so that what is finished when it is stopped can be compared already."""
    core = [name for name in settings.models if name in CORE]
    others = [name for name in settings.models if name not in CORE]
    return [
        Trial(name, fraction, seed)
        for names, seeds in ((core, settings.seeds), (others, settings.other_seeds))
        for seed in range(seeds)
        for fraction in settings.fractions
        for name in names
    ]


def share_of_images(settings: Settings, trial: Trial) -> float:
    """Images of an epoch of `trial`, by all training images."""
    return trial.fraction * settings.repeats[settings.fractions.index(trial.fraction)]
