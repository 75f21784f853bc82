# SPDX-License-Identifier: MIT
"""Puts a run together from its options: data and detector."""

from __future__ import annotations

import dataclasses

from timm.data import resolve_data_config
from torch import nn

from tasks.detection.annotations import Source
from tasks.detection.detectors import (
    DETECTORS,
    DetectorSettings,
    body_of,
    build_detector,
    freeze_norms,
    load_classifier,
    preset,
)
from tasks.detection.evaluate import Normalization
from tasks.detection.options import DetectionOptions
from tasks.detection.recipes import OF_SMALL_DETECTORS
from tasks.detection.scenes import LARGE_DIGITS, SMALL_DIGITS, Scenes
from tasks.detection.sources import open_source
from tasks.detection.task import Detection
from training.compute import make_compute
from training.distributed import World
from training.errors import DataError, OptionError
from training.interrupt import StopGuard
from training.randomness import seed_everything
from training.run import Run, make_run

# Those that learn slowly from nothing get few, large digits.
OF_LARGE_DIGITS = ("detr", "conditional-detr", "smca-detr", "deformable-detr")


def open_sources(options: DetectionOptions) -> tuple[Source, Source]:
    """The training and the validation images; scenes of digits without --data-path.

    Raises:
        DataError: they are missing or have mistakes, or have no masks for a detector that learns them.
    """
    if options.data_path is None:
        style = LARGE_DIGITS if options.detector in OF_LARGE_DIGITS else SMALL_DIGITS
        return Scenes(options.train_scenes, True, style=style), Scenes(options.val_scenes, False, style=style)
    train = open_source("--data-path", options.data_path, True)
    path = ("--val-path", options.val_path) if options.val_path else ("--data-path", options.data_path)
    val = open_source(*path, False, train.categories)
    for source in (train, val):
        if DETECTORS[options.detector].gives_masks and not source.has_masks:
            raise DataError(f"{source.name} has no masks for every object, which --detector {options.detector} learns")
    return train, val


def settings_of(options: DetectionOptions) -> DetectorSettings:
    """The sizes of the detector: small ones for recipes that say so, else those of papers."""
    kind = "scenes" if options.recipe in OF_SMALL_DETECTORS else "coco"
    return dataclasses.replace(
        preset(kind, options.detector), backbone=options.model, model_kwargs=options.model_kwargs or {},
        drop_path=options.drop_path,
    )  # fmt: skip


def build_model(
    options: DetectionOptions, num_classes: int, backbone_checkpoint: str | None = None
) -> tuple[nn.Module, list[str]]:
    """The detector, with fresh weights but for those of a classifier, and lines that say what was loaded and frozen.

    Raises:
        OptionError: the backbone does not serve, or a package is missing.
        CheckpointError: the weights do not fit the backbone.
    """
    model = build_detector(options.detector, num_classes, settings_of(options))
    remarks = []
    if backbone_checkpoint:
        remarks.append(load_classifier(model, backbone_checkpoint, branch=options.checkpoint_key).describe())
    # Statistics of two images are noise; those of weights that are given are good, and stay.
    if options.backbone_checkpoint and not (options.live_bn or options.sync_bn):
        remarks.append(f"{freeze_norms(model)} batch norms of the backbone are frozen")
    return model, remarks


def normalization_of(model: nn.Module) -> Normalization:
    """What the backbone was, or would be, trained with."""
    config = resolve_data_config(pretrained_cfg=getattr(body_of(model), "pretrained_cfg", {}))
    return Normalization(tuple(config["mean"]), tuple(config["std"]))


def build_run(
    options: DetectionOptions, world: World, guard: StopGuard, sources: tuple[Source, Source], output_dir: str
) -> tuple[Run, list[str]]:
    """Assemble a run at its beginning, and what the user should know of it.

    Raises:
        OptionError: the backbone or the optimizer refuses an option.
        DataError: there are fewer images than a batch needs.
        CheckpointError: --backbone-checkpoint does not fit the backbone.
    """
    train, val = sources
    compute = make_compute(world.device, options.amp_dtype, options.channels_last)
    seed_everything(options.seed)
    given = None if options.resume else options.backbone_checkpoint
    model, remarks = build_model(options, len(train.categories), given)
    if options.grad_checkpointing:
        try:
            body_of(model).set_grad_checkpointing()
        except (AttributeError, AssertionError) as error:
            raise OptionError(
                f"--grad-checkpointing: {options.model} cannot compute activations again: {error}"
            ) from error
    model.to(device=compute.device, memory_format=compute.memory_format)
    task = Detection(options, model, train, val, normalization_of(model), compute, world)
    return make_run(task, options, world, compute, guard, output_dir), remarks
