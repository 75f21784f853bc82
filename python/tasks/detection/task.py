# SPDX-License-Identifier: MIT
"""Object detection as the engine sees it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, BinaryIO

import torch
from torch import nn

from tasks.detection.annotations import Source
from tasks.detection.curves import draw_curves
from tasks.detection.data import Batch, GroupedBatches, detection_loader
from tasks.detection.detectors import DETECTORS, body_of
from tasks.detection.evaluate import Judgement, Normalization, evaluate, make_evaluation, metric_names
from tasks.detection.options import DetectionOptions
from tasks.detection.recipes import recipe_values
from tasks.detection.transforms import Crops, Sizes, TrainingTransform
from training.batches import TrainingBatches
from training.compute import Compute
from training.distributed import World
from training.interrupt import StopGuard
from training.options import wrap_command_line
from training.progress import Progress
from training.task import Losses, Task


class Detection(Task):
    """A network that finds the objects of images.

    Raises:
        DataError: there are fewer images than a batch needs.
    """

    name = "detection"

    def __init__(
        self,
        options: DetectionOptions,
        model: nn.Module,
        train: Source,
        val: Source,
        normalization: Normalization,
        compute: Compute,
        world: World,
    ):
        self.options, self.model, self.normalization, self.compute = options, model, normalization, compute
        self.categories = train.categories
        self.training_images = len(train)
        self.data_name = "scenes of handwritten digits"
        if options.data_path:
            self.data_name = os.path.basename(os.path.abspath(options.data_path))
        masks = DETECTORS[options.detector].gives_masks
        self.part_names = DETECTORS[options.detector].losses
        self.metric_names = metric_names(masks)
        if options.group_aspects:
            self.batches = GroupedBatches(train, options, world)
        else:
            self.batches = TrainingBatches(len(train), train.name, options, world)
        self.sizes = Sizes(options.short_sides, options.longest_side)
        transform = TrainingTransform(self.sizes, options.hflip, Crops() if options.random_crops else None)
        self.loader = detection_loader(train, transform, self.batches, options.num_workers, world)
        self.evaluation = make_evaluation(
            val, self.sizes, normalization, compute, world, options.batch_size, options.num_workers, masks,
            options.limit_batches,
        )  # fmt: skip
        self.judgement: Judgement | None = None  # the last one

    def compiled(self, network: nn.Module) -> nn.Module:
        """See `Task.compiled`: the backbone alone, where it is; the rest asks the data how many objects there are."""
        # Maps of our networks are views, whose strides Inductor cannot order when sizes are symbols (PyTorch 2.14).
        wanted = {"strict_output_strides": True}
        known = torch._inductor.list_options()
        body_of(network).compile(options={name: value for name, value in wanted.items() if name in known})
        return network

    def step(self, network: nn.Module, batch: Batch) -> Losses:
        """See `Task.step`."""
        images, targets = batch.to(self.compute.device)
        if DETECTORS[self.options.detector].gives_masks:
            targets = [{**target, "masks": target["masks"].to(torch.uint8)} for target in targets]
        else:
            targets = [{name: target[name] for name in ("boxes", "labels")} for target in targets]
        with self.compute.autocast():
            losses = network(self.normalization.apply(images), targets)
        return Losses(sum(losses.values()), losses)

    def parameter_groups(self) -> list[dict]:
        """See `Task.parameter_groups`: the backbone, what says where to look, and the rest, each with norms and biases
        apart unless --decay-norms."""
        backbone = {id(parameter) for parameter in body_of(self.model).parameters()}
        groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
        for name, parameter in self.model.named_parameters():
            if not parameter.requires_grad:
                continue
            scale = self.options.backbone_lr_scale if id(parameter) in backbone else 1.0
            if "sampling_offsets" in name or "reference_points" in name:
                scale = self.options.sampling_lr_scale
            decays = self.options.decay_norms or parameter.ndim > 1
            groups.setdefault((scale, decays), []).append(parameter)
        return [
            {"params": parameters, "lr_scale": scale, **({} if decays else {"weight_decay": 0.0})}
            for (scale, decays), parameters in groups.items()
        ]

    def evaluate(self, network: nn.Module, guard: StopGuard, progress: Progress) -> dict[str, float]:
        """See `Task.evaluate`."""
        self.judgement = evaluate(network, self.evaluation, guard, progress)
        return self.judgement.numbers()

    def score(self, metrics: Mapping[str, float]) -> float:
        """The boxes' average precision."""
        return metrics["AP"]

    def describe_data(self) -> str:
        """See `Task.describe_data`."""
        sides = "/".join(map(str, self.options.short_sides))
        if len(self.options.short_sides) > 3:
            sides = f"{self.options.short_sides[0]} … {self.options.short_sides[-1]}"
        return (
            f"{self.data_name}: {self.training_images:,} training and {self.evaluation.batches.images:,} validation "
            f"images, {len(self.categories)} categories, short side {sides}"
        )

    def describe_recipe(self) -> list[str]:
        """The recipe, with what was given in place of its values."""
        recipe = recipe_values(self.options.recipe, self.options.detector, self.options.data_path is not None)
        values = {name: getattr(self.options, name) for name in recipe if name not in ("recipe", "model_kwargs")}
        lines = wrap_command_line({name: value for name, value in values.items() if value is not None}, 100)
        parameters = sum(parameter.numel() for parameter in body_of(self.model).parameters()) / 1e6
        return [
            f"detector  {self.options.detector}; its backbone has {parameters:.2f} M of the parameters",
            f"recipe    {self.options.recipe}, with what was given:",
            *(f"          {line}" for line in lines),
        ]

    def describe_epoch(self, row: Mapping[str, Any], best: float) -> str:
        """See `Task.describe_epoch`."""
        masks = f"   mask AP {row['val_mask_AP']:.3f}" if "val_mask_AP" in row else ""
        ema = "" if row["ema_AP"] is None else f" (average {row['ema_AP']:.3f})"
        return f"AP {row['val_AP']:.3f}{ema}   AP50 {row['val_AP50']:.3f}{masks}   best {best:.3f}"

    def describe_result(self, row: Mapping[str, Any], best: float, epoch: int) -> str:
        """See `Task.describe_result`."""
        return f"best AP {best:.3f} in epoch {epoch}, last {row['val_AP']:.3f}"

    def draw_curves(self, file: BinaryIO, history: list[dict]) -> None:
        """See `Task.draw_curves`."""
        title = f"{self.options.detector} with {self.options.model} on {self.data_name}"
        draw_curves(file, history, self.part_names, title)

    def describe_weights(self) -> dict[str, Any]:
        """The categories, in the order of the outputs, and how images are normalized."""
        return {
            "categories": [[category.id, category.name] for category in self.categories],
            "normalization": [list(self.normalization.mean), list(self.normalization.std)],
        }
