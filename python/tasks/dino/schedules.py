# SPDX-License-Identifier: MIT
"""What changes while training, as functions of the step: a resumed run goes on alike."""

from __future__ import annotations

import dataclasses
import math

from tasks.dino.options import DinoOptions


def cosine(start: float, end: float, update: int, updates: int) -> float:
    """From `start` at update 0 along half a cosine towards `end`, which update `updates` would have."""
    return end + (start - end) * (1 + math.cos(math.pi * update / updates)) / 2


@dataclasses.dataclass(frozen=True)
class StepValues:
    """The values of one step; the learning rate is the engine's."""

    momentum: float  # of the teacher
    teacher_temperature: float
    weight_decay: float
    last_layer_is_frozen: bool


def values_at(options: DinoOptions, update: int, updates: int) -> StepValues:
    """The values of step `update` (from 0) of `updates`. The teacher's temperature changes between epochs."""
    epoch = update * options.epochs // updates
    return StepValues(
        momentum=cosine(options.momentum_teacher, options.momentum_teacher_end, update, updates),
        teacher_temperature=_teacher_temperature(options, epoch),
        weight_decay=cosine(options.weight_decay, options.weight_decay_end, update, updates),
        last_layer_is_frozen=epoch < options.freeze_last_layer,
    )


def _teacher_temperature(options: DinoOptions, epoch: int) -> float:
    warmup, start, end = options.warmup_teacher_temp_epochs, options.warmup_teacher_temp, options.teacher_temp
    if epoch >= warmup - 1:  # as numpy.linspace(start, end, warmup), which ends on `end`
        return end if warmup != 1 or epoch > 0 else start
    return start + (end - start) * epoch / (warmup - 1)
