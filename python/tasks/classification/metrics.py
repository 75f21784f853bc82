# SPDX-License-Identifier: MIT
"""Judging a model on every validation image exactly once, over any number of ranks."""

from __future__ import annotations

import dataclasses
import itertools
import time

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader
from training.compute import Compute, ImageFormat
from training.distributed import World
from training.errors import DataError
from training.interrupt import StopGuard
from training.progress import Progress

from tasks.classification.data import EvaluationBatches, evaluation_transform, make_loader
from tasks.classification.sources import Source


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The images a model is judged on, and how it is computed."""

    world: World
    compute: Compute
    image_format: ImageFormat
    batches: EvaluationBatches
    loader: DataLoader


@dataclasses.dataclass(frozen=True)
class Metrics:
    """A judgement over all ranks; accuracies in percent."""

    loss: float
    top1: float
    top5: float
    images: int
    seconds: float


def make_evaluation(
    source: Source,
    image_format: ImageFormat,
    compute: Compute,
    world: World,
    batch_size: int,
    num_workers: int | None,
    limit_batches: int | None = None,
) -> Evaluation:
    """Everything `evaluate` needs besides a model."""
    batches = EvaluationBatches(source, batch_size, world, limit_batches)
    loader = make_loader(source, evaluation_transform(image_format), batches, num_workers, world)
    return Evaluation(world, compute, image_format, batches, loader)


@torch.inference_mode()
def evaluate(
    model: nn.Module, evaluation: Evaluation, guard: StopGuard | None = None, progress: Progress | None = None
) -> Metrics:
    """Judge `model`: counts are summed over the ranks, nothing is padded.

    Raises:
        Interrupted: on every rank, if `guard` got a signal.
        DataError: an image cannot be read; with `guard` on every rank.
    """
    started = time.monotonic()
    model.eval()
    sums = torch.zeros(4, dtype=torch.float64, device=evaluation.compute.device)
    progress = progress or Progress(shown=False)
    with progress.over("evaluation", evaluation.batches.images) as meter:
        # a rank with a batch less than others still takes part in their checks
        idle_turns = evaluation.batches.longest_rank - len(evaluation.batches)
        for batch in itertools.chain(evaluation.loader, [None] * idle_turns):
            if guard is not None:
                guard.check(batch)
            elif isinstance(batch, DataError):
                raise batch
            if batch is not None:
                sums += _count(model, batch, evaluation)
                meter.advance(len(batch[0]) * evaluation.world.size)
    loss, top1, top5, images = evaluation.world.sum(sums).tolist()
    return Metrics(loss / images, 100 * top1 / images, 100 * top5 / images, int(images), time.monotonic() - started)


def _count(model: nn.Module, batch, evaluation: Evaluation) -> torch.Tensor:
    """[sum of losses, images right at the first guess, right among the first five, images], float64."""
    images, labels = evaluation.compute.prepare(batch, evaluation.image_format)
    with evaluation.compute.autocast():
        logits = model(images)
    logits = logits.float()
    right = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
    loss = F.cross_entropy(logits, labels, reduction="sum")
    return torch.stack([loss, right[:, 0].sum(), right.sum(), loss.new_tensor(len(labels))]).double()
