# SPDX-License-Identifier: MIT
"""Whether the targets still say something: a falling loss alone does not show it."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from tasks.dino.features import Features
from tasks.dino.loss import entropy
from training.distributed import World

LEAST_INFORMATION = 0.05
"""In nats; targets that differ less between images teach nothing."""
NEARLY_UNIFORM = 0.8
"""The part of the largest entropy, log(prototypes), above which targets count as uniform."""


@dataclasses.dataclass(frozen=True)
class Targets:
    """Entropies in nats. entropy: the mean of each image's target; mean_entropy: of all images' mean target. Their
    difference is what a target says of its image: 0 is collapse, whichever way."""

    entropy: float
    mean_entropy: float

    @property
    def information(self) -> float:
        return self.mean_entropy - self.entropy


def measure_targets(targets: Tensor, world: World) -> Targets:
    """Of the targets (N, K) of this rank's images, over all ranks."""
    sums = torch.cat([targets.double().sum(0), entropy(targets.double()).sum()[None]])
    count = world.sum(torch.tensor([float(len(targets))]))
    *mean, own = (world.sum(sums) / count).tolist()
    return Targets(own, float(entropy(torch.tensor(mean, dtype=torch.float64))))


def deviation(features: Features) -> float:
    """The deviation of the features over images, times √C: 1 where they fill the sphere, 0 where all are one."""
    rows = features.rows.double()
    count = features.world.sum(torch.tensor([float(len(rows))]))
    mean = features.world.sum(rows.sum(0)) / count
    square = features.world.sum((rows**2).sum(0)) / count
    return float((square - mean**2).clamp_min(0).sum().sqrt())


def advice(targets: Targets, out_dim: int) -> str | None:
    """What to do about targets that say nothing; None where they do."""
    if targets.information >= LEAST_INFORMATION:
        return None
    if targets.entropy > NEARLY_UNIFORM * math.log(out_dim):
        return (
            "collapsed: every image has the same, uniform target. Lower --teacher-temp or --warmup-teacher-temp, or "
            "--center-momentum; check that the views have something in common"
        )
    return (
        "collapsed: every image has the same target of a few prototypes. Lower --lr, raise --teacher-temp or "
        "--momentum-teacher, freeze the last layer longer (--freeze-last-layer); --no-norm-last-layer is not stable "
        "for every network"
    )
