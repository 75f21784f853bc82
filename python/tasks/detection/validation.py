# SPDX-License-Identifier: MIT
"""Evaluating a detector's checkpoint: `detect.py --eval`."""

from __future__ import annotations

import dataclasses
import os

from timm.utils import reparameterize_model

from tasks.detection.build import open_sources
from tasks.detection.checkpoint import load_detector
from tasks.detection.detectors import DETECTORS
from tasks.detection.evaluate import Judgement, evaluate, make_evaluation
from tasks.detection.metrics import describe_categories, write_results
from tasks.detection.options import DetectionOptions
from tasks.detection.transforms import Sizes
from training.compute import make_compute
from training.distributed import join_world
from training.errors import DataError
from training.progress import Progress

# Given options that hold; the others are those of the checkpoint.
HOLD = (
    "data_path", "val_path", "batch_size", "num_workers", "limit_batches", "device", "amp_dtype", "channels_last",
    "short_sides", "longest_side", "val_scenes",
)  # fmt: skip


def judge_checkpoint(options: DetectionOptions, explicit: dict) -> Judgement:
    """Evaluate --eval, print COCO's numbers and the AP of each category, write results.json beside the checkpoint.

    Raises:
        CheckpointError, DataError, OptionError: the checkpoint or the images cannot be read, or do not go together.
    """
    saved = load_detector(options.eval)
    given = {name: value for name, value in explicit.items() if name in HOLD}
    device = {"device": options.device, "resume": None}
    settings = dataclasses.replace(saved.options, **device, **{k: v for k, v in given.items() if k != "device"})
    _, source = open_sources(settings)
    if [(c.id, c.name) for c in source.categories] != [(c.id, c.name) for c in saved.categories]:
        raise DataError(f"{source.name} has other categories than {options.eval} was trained on")
    world = join_world(settings.device)
    compute = make_compute(world.device, settings.amp_dtype, settings.channels_last)
    # What is folded and fused computes the same, faster.
    model = reparameterize_model(saved.model).to(compute.device, memory_format=compute.memory_format)
    evaluation = make_evaluation(
        source, Sizes(settings.short_sides, settings.longest_side), saved.normalization, compute, world,
        settings.batch_size, settings.num_workers, DETECTORS[settings.detector].gives_masks, settings.limit_batches,
    )  # fmt: skip
    judgement = evaluate(model, evaluation, progress=Progress(world.is_main))
    if world.is_main:
        path = os.path.join(os.path.dirname(os.path.abspath(options.eval)), "results.json")
        write_results(path, judgement.results)
        print(f"{settings.detector} with {settings.model} on {evaluation.batches.images:,} images of {source.name}")
        print(*judgement.describe(), "AP by category", *describe_categories(judgement.boxes), sep="\n")
        print(f"results   {path}")
    return judgement
