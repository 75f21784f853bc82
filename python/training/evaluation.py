# SPDX-License-Identifier: MIT
"""Counting over every validation image exactly once, over any number of ranks."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable

import torch

from training.batches import EvaluationBatches
from training.distributed import World
from training.errors import DataError
from training.interrupt import StopGuard
from training.progress import Progress


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The batches of this rank; `loader` follows `batches`."""

    world: World
    batches: EvaluationBatches
    loader: Iterable


def visit(
    handle: Callable[[object], None],
    evaluation: Evaluation,
    guard: StopGuard | None = None,
    progress: Progress | None = None,
) -> None:
    """Call `handle` with each batch of this rank; all ranks stop together.

    Raises:
        Interrupted: on every rank, if `guard` got a signal.
        DataError: an image cannot be read; with `guard` on every rank.
    """
    batches, world = evaluation.batches, evaluation.world
    progress = progress or Progress(shown=False)
    with progress.over("evaluation", batches.images) as meter:
        # a rank with a batch less than others still takes part in their checks
        idle_turns = batches.longest_rank - len(batches)
        for number, batch in enumerate(itertools.chain(evaluation.loader, [None] * idle_turns)):
            if guard is not None:
                guard.check(batch)
            elif isinstance(batch, DataError):
                raise batch
            if batch is not None:
                handle(batch)
                meter.advance(len(batches.batches[number]) * world.size)


@torch.inference_mode()
def sum_counts(
    count: Callable[[object], torch.Tensor],
    size: int,
    evaluation: Evaluation,
    guard: StopGuard | None = None,
    progress: Progress | None = None,
) -> list[float]:
    """The sum of what `count` makes of each batch, a tensor (size,), over all batches and ranks; nothing is padded.

    Raises:
        Interrupted, DataError: as `visit`.
    """
    sums = torch.zeros(size, dtype=torch.float64, device=evaluation.world.device)

    def add(batch: object) -> None:
        nonlocal sums
        sums += count(batch)

    visit(add, evaluation, guard, progress)
    return evaluation.world.sum(sums).tolist()
