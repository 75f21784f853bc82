# SPDX-License-Identifier: MIT
"""Judging a detector on every validation image exactly once, over any number of ranks."""

from __future__ import annotations

import dataclasses

import torch
from torch import nn

from tasks.detection.annotations import Source
from tasks.detection.data import Batch, detection_loader
from tasks.detection.metrics import NUMBERS, CocoMetrics, Result, Scores, as_results
from tasks.detection.transforms import EvaluationTransform, Sizes, to_original
from training.batches import EvaluationBatches
from training.compute import Compute
from training.distributed import World
from training.evaluation import Evaluation, visit
from training.interrupt import StopGuard
from training.progress import Progress


@dataclasses.dataclass(frozen=True)
class Normalization:
    """Mean and deviation of the channels, from 0 to 1, that the backbone was trained with."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def apply(self, images: list[torch.Tensor]) -> list[torch.Tensor]:
        """uint8 images (3, H, W) as float32."""
        mean, std = (images[0].new_tensor(v, dtype=torch.float32).view(-1, 1, 1) for v in (self.mean, self.std))
        return [image.to(torch.float32).div_(255).sub_(mean).div_(std) for image in images]


@dataclasses.dataclass(frozen=True)
class DetectionEvaluation(Evaluation):
    """The images a detector is judged on, and how it is computed."""

    source: Source
    metrics: CocoMetrics
    compute: Compute
    normalization: Normalization
    masks: bool  # whether they are judged, too


@dataclasses.dataclass(frozen=True)
class Judgement:
    """Over all ranks: scores of boxes and of masks, and the detections themselves, on the main rank alone."""

    boxes: Scores
    masks: Scores | None
    results: list[Result]

    def numbers(self) -> dict[str, float]:
        """Those of the boxes, and with `mask_` those of the masks."""
        masks = {} if self.masks is None else {f"mask_{name}": ap for name, ap in self.masks.numbers.items()}
        return {**self.boxes.numbers, **masks}

    def describe(self) -> list[str]:
        """COCO's numbers, in lines."""
        lines = []
        for what, scores in (("boxes", self.boxes), ("masks", self.masks)):
            if scores is not None:
                lines.append(f"{what}  " + "  ".join(f"{name} {scores.numbers[name]:.3f}" for name in NUMBERS[:6]))
                lines.append(" " * 7 + "  ".join(f"{name} {scores.numbers[name]:.3f}" for name in NUMBERS[6:]))
        return lines


def metric_names(masks: bool) -> tuple[str, ...]:
    """The names of `Judgement.numbers`."""
    return (*NUMBERS, *(f"mask_{name}" for name in NUMBERS if masks))


def make_evaluation(
    source: Source,
    sizes: Sizes,
    normalization: Normalization,
    compute: Compute,
    world: World,
    batch_size: int,
    num_workers: int | None,
    masks: bool,
    limit_batches: int | None = None,
) -> DetectionEvaluation:
    """Everything `evaluate` needs besides a detector.

    Raises:
        DataError: faster-coco-eval is missing.
    """
    batches = EvaluationBatches(len(source), batch_size, world, limit_batches)
    loader = detection_loader(source, EvaluationTransform(sizes), batches, num_workers, world)
    seen = [i * len(source) // batches.images for i in range(batches.images)]
    metrics = CocoMetrics(source, seen if world.is_main else seen[:1])
    return DetectionEvaluation(world, batches, loader, source, metrics, compute, normalization, masks)


@torch.inference_mode()
def detect(
    network: nn.Module, batch: Batch, compute: Compute, normalization: Normalization, originals: list[tuple[int, int]]
) -> list[dict[str, torch.Tensor]]:
    """The detections of a batch in pixels of images of sizes `originals`; masks are bool."""
    images, _ = batch.to(compute.device)
    with compute.autocast():
        detections = network(normalization.apply(images))
    found = []
    for image, detection, original in zip(images, detections, originals, strict=True):
        detection = {name: value.float() if value.is_floating_point() else value for name, value in detection.items()}
        found.append(_with_binary_masks(to_original(detection, tuple(image.shape[-2:]), original)))
    return found


def _with_binary_masks(detection: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    masks = detection.get("masks")
    return detection if masks is None or masks.dtype == torch.bool else {**detection, "masks": masks >= 0.5}


def evaluate(
    network: nn.Module,
    evaluation: DetectionEvaluation,
    guard: StopGuard | None = None,
    progress: Progress | None = None,
) -> Judgement:
    """Judge `network`: the results of all ranks together, each image once.

    Raises:
        Interrupted: on every rank, if `guard` got a signal.
        DataError: an image cannot be read; with `guard` on every rank.
    """
    network.eval()
    source, results = evaluation.source, []

    def collect(batch: Batch) -> None:
        originals = [source.size(index) for index in batch.indices]
        found = detect(network, batch, evaluation.compute, evaluation.normalization, originals)
        for index, detection in zip(batch.indices, found, strict=True):
            results.extend(as_results(detection, source.image_id(index), source.categories))

    visit(collect, evaluation, guard, progress)
    everything = [result for rank in evaluation.world.gather(results) for result in rank]
    judgement = None
    if evaluation.world.is_main:
        # Ranks take images in turn: in the order of images, the results are those of one process.
        place = {source.image_id(index): index for index in range(len(source))}
        everything.sort(key=lambda result: place[result["image_id"]])
        masks = evaluation.metrics.judge(everything, masks=True) if evaluation.masks else None
        judgement = Judgement(evaluation.metrics.judge(everything), masks, [])
    shared = evaluation.world.gather(judgement)[0]
    return dataclasses.replace(shared, results=everything if evaluation.world.is_main else [])
