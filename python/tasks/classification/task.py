# SPDX-License-Identifier: MIT
"""Image classification as the engine sees it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any, BinaryIO

import timm.loss
import torch
from torch import nn

from labelled_images.loader import image_loader
from labelled_images.sources import Source, enumerate_names
from tasks.classification.curves import draw_curves
from tasks.classification.data import Augmenter, training_batches, training_transform
from tasks.classification.metrics import evaluate, make_evaluation
from tasks.classification.option_checks import DIGITS_RECIPE, mixes
from tasks.classification.options import Options
from training.compute import Compute, ImageFormat
from training.distributed import World
from training.errors import CheckpointError
from training.interrupt import StopGuard
from training.options import wrap_command_line
from training.progress import Progress
from training.task import Losses, Task


class Classification(Task):
    """A network that learns the classes of images.

    Raises:
        DataError: there are fewer images than a batch needs.
    """

    name = "classification"
    metric_names = ("loss", "top1", "top5")

    def __init__(
        self,
        options: Options,
        model: nn.Module,
        train: Source,
        val: Source,
        image_format: ImageFormat,
        compute: Compute,
        world: World,
    ):
        self.options, self.model, self.image_format, self.compute = options, model, image_format, compute
        self.classes = train.classes
        self.training_images = len(train.labels) // options.epoch_repeats
        self.data_name = "handwritten digits"
        if options.data_path:
            self.data_name = os.path.basename(os.path.abspath(options.data_path))
        self.batches = training_batches(train, options, world)
        transform = training_transform(options, image_format)
        self.loader = image_loader(train, transform, self.batches, options.num_workers, world)
        self.augment = Augmenter(options, len(self.classes), compute.device)
        self.criterion = make_criterion(options)
        self.evaluation = make_evaluation(
            val, image_format, compute, world, options.batch_size, options.num_workers, options.limit_batches
        )

    def step(self, network: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> Losses:
        """See `Task.step`; a batch is (uint8 images (B, 3, H, W), labels (B,))."""
        images, labels = batch
        images = self.compute.normalize(images, self.image_format)
        images, targets = self.augment(images, labels.to(images.device, non_blocking=True))
        with self.compute.autocast():
            return Losses(self.criterion(network(images), targets))

    def evaluate(self, network: nn.Module, guard: StopGuard, progress: Progress) -> dict[str, float]:
        """See `Task.evaluate`."""
        return dataclasses.asdict(evaluate(network, self.evaluation, guard, progress))

    def score(self, metrics: Mapping[str, float]) -> float:
        """The top-1 accuracy."""
        return metrics["top1"]

    def describe_data(self) -> str:
        """See `Task.describe_data`."""
        repeats = f" ({self.options.epoch_repeats} times an epoch)" if self.options.epoch_repeats > 1 else ""
        size = self.image_format.size
        return (
            f"{self.data_name}: {self.training_images:,} training{repeats} and "
            f"{self.evaluation.batches.images:,} validation images, {len(self.classes)} classes, {size}×{size}"
        )

    def describe_recipe(self) -> list[str]:
        """The default recipe of the digits."""
        if self.options.data_path is not None:
            return []
        recipe = {name: value for name, value in DIGITS_RECIPE.items() if getattr(self.options, name) == value}
        return [
            "no --data-path was given: this learns scikit-learn's handwritten digits, with",
            *(f"          {part}" for part in wrap_command_line(recipe, 100)),
        ]

    def describe_epoch(self, row: Mapping[str, Any], best: float) -> str:
        """See `Task.describe_epoch`."""
        ema = "" if row["ema_top1"] is None else f" (average {row['ema_top1']:.2f} %)"
        return f"val loss {row['val_loss']:.4f}   top-1 {row['val_top1']:6.2f} %{ema}   best {best:.2f} %"

    def describe_result(self, row: Mapping[str, Any], best: float, epoch: int) -> str:
        """See `Task.describe_result`."""
        return f"best top-1 {best:.2f} % in epoch {epoch}, last {row['val_top1']:.2f} %"

    def draw_curves(self, file: BinaryIO, history: list[dict]) -> None:
        """See `Task.draw_curves`."""
        draw_curves(file, history, f"{self.options.model} on {self.data_name}")

    def describe_weights(self) -> dict[str, Any]:
        """The names of the classes, in the order of the outputs."""
        return {"classes": self.classes}

    def check_weights(self, content: Mapping[str, Any]) -> None:
        """See `Task.check_weights`."""
        if content["classes"] != self.classes:
            raise CheckpointError(
                f"--resume: the checkpoint was trained on {enumerate_names(content['classes'], 3)}, "
                f"the data has {enumerate_names(self.classes, 3)}"
            )


def make_criterion(options: Options) -> nn.Module:
    """Cross entropy; mixing brings (smoothed) label distributions of its own."""
    if mixes(options):
        return timm.loss.SoftTargetCrossEntropy()
    if options.smoothing > 0:
        return timm.loss.LabelSmoothingCrossEntropy(options.smoothing)
    return nn.CrossEntropyLoss()
