# SPDX-License-Identifier: MIT
"""Puts a run together from its options: data and detector."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from timm.data import resolve_data_config
from torch import nn

from tasks.detection.annotations import Category, Source
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
from tasks.detection.fine_tuning import load_detector_weights
from tasks.detection.options import SET_DETECTORS, DetectionOptions
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


def open_sources(options: DetectionOptions) -> tuple[Source, Source]:
    """The training and the validation images; scenes of digits without --data-path.

    Raises:
        DataError: they are missing or have mistakes, or have no masks for a detector that learns them.
    """
    if options.data_path is None:
        style = LARGE_DIGITS if options.detector in SET_DETECTORS else SMALL_DIGITS
        return Scenes(options.train_scenes, True, style=style), Scenes(options.val_scenes, False, style=style)
    train = open_source("--data-path", options.data_path, True, of_one_part=options.val_path is not None)
    path = ("--val-path", options.val_path) if options.val_path else ("--data-path", options.data_path)
    val = open_source(*path, False, train.categories, of_one_part=options.val_path is not None)
    for source in (train, val):
        if DETECTORS[options.detector].gives_masks and not source.has_masks:
            raise DataError(
                f"{source.name} has objects without a mask; --detector {options.detector} learns from the masks of all"
            )
    return train, val


def settings_of(options: DetectionOptions) -> DetectorSettings:
    """The sizes of the detector: small ones for recipes that say so, else those of papers."""
    kind = "scenes" if options.recipe in OF_SMALL_DETECTORS else "coco"
    given = {"queries": options.queries} if options.queries is not None else {}
    return dataclasses.replace(
        preset(kind, options.detector), backbone=options.model, model_kwargs=options.model_kwargs or {},
        drop_path=options.drop_path, **given,
    )  # fmt: skip


def build_model(
    options: DetectionOptions, num_classes: int, start: Callable[[nn.Module], str] | None = None
) -> tuple[nn.Module, list[str]]:
    """The detector with fresh weights, or those that `start` gives it, and lines that say what was loaded and frozen.

    Raises:
        OptionError: the backbone does not serve, or a package is missing.
    """
    model = build_detector(options.detector, num_classes, settings_of(options))
    remarks = [start(model)] if start else []
    # Statistics of two images are noise; those of weights that are given are good, and stay.
    given = options.backbone_checkpoint and not (options.live_bn or options.sync_bn)
    if given or options.freeze_bn:
        remarks.append(f"{freeze_norms(model)} batch norms of the backbone are frozen")
    return model, remarks


def without_fetching(options: DetectionOptions) -> DetectionOptions:
    """`options` for a detector whose weights are in a checkpoint: timm's are not fetched first."""
    kwargs = {key: value for key, value in (options.model_kwargs or {}).items() if key != "pretrained"}
    return dataclasses.replace(options, model_kwargs=kwargs)


def _start(options: DetectionOptions, categories: list[Category]) -> Callable[[nn.Module], str] | None:
    """What fills a new detector: a trained one, a classifier, or nothing."""
    if options.initial_checkpoint:
        settings = settings_of(options)
        return lambda model: load_detector_weights(model, options, settings, categories)
    if options.backbone_checkpoint:
        path, branch = options.backbone_checkpoint, options.checkpoint_key
        return lambda model: load_classifier(model, path, branch=branch).describe()
    return None


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
        CheckpointError: --initial-checkpoint or --backbone-checkpoint does not fit.
    """
    train, val = sources
    compute = make_compute(world.device, options.amp_dtype, options.channels_last)
    seed_everything(options.seed)
    if options.resume:
        model, remarks = build_model(without_fetching(options), len(train.categories))
    else:
        model, remarks = build_model(options, len(train.categories), _start(options, train.categories))
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
