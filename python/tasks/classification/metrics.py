# SPDX-License-Identifier: MIT
"""Judging a classifier on every validation image exactly once, over any number of ranks."""

from __future__ import annotations

import dataclasses
import functools
import time

import torch
import torch.nn.functional as F
from torch import nn

from labelled_images.evaluation_transform import evaluation_transform
from labelled_images.loader import image_loader
from labelled_images.sources import Source
from training.batches import EvaluationBatches
from training.compute import Compute, ImageFormat
from training.distributed import World
from training.evaluation import Evaluation, sum_counts
from training.interrupt import StopGuard
from training.progress import Progress


@dataclasses.dataclass(frozen=True)
class LabelledEvaluation(Evaluation):
    """The images a classifier is judged on, and how it is computed."""

    compute: Compute
    image_format: ImageFormat


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
) -> LabelledEvaluation:
    """Everything `evaluate` needs besides a model."""
    batches = EvaluationBatches(len(source.labels), batch_size, world, limit_batches)
    loader = image_loader(source, evaluation_transform(image_format), batches, num_workers, world)
    return LabelledEvaluation(world, batches, loader, compute, image_format)


def evaluate(
    model: nn.Module, evaluation: LabelledEvaluation, guard: StopGuard | None = None, progress: Progress | None = None
) -> Metrics:
    """Judge `model`: counts are summed over the ranks, nothing is padded.

    Raises:
        Interrupted: on every rank, if `guard` got a signal.
        DataError: an image cannot be read; with `guard` on every rank.
    """
    started = time.monotonic()
    count = functools.partial(_count, model.eval(), evaluation)
    loss, top1, top5, images = sum_counts(count, 4, evaluation, guard, progress)
    return Metrics(loss / images, 100 * top1 / images, 100 * top5 / images, int(images), time.monotonic() - started)


def _count(model: nn.Module, evaluation: LabelledEvaluation, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """[sum of losses, images right at the first guess, right among the first five, images], float64."""
    images, labels = batch
    images = evaluation.compute.normalize(images, evaluation.image_format)
    labels = labels.to(images.device, non_blocking=True)
    with evaluation.compute.autocast():
        logits = model(images)
    logits = logits.float()
    right = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
    loss = F.cross_entropy(logits, labels, reduction="sum")
    return torch.stack([loss, right[:, 0].sum(), right.sum(), loss.new_tensor(len(labels))]).double()
