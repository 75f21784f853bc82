# SPDX-License-Identifier: MIT
"""The detector of a checkpoint of `detect.py`, whole: it says what it was built with."""

from __future__ import annotations

import dataclasses

from torch import nn

from tasks.detection.annotations import Category
from tasks.detection.build import build_model, without_fetching
from tasks.detection.evaluate import Normalization
from tasks.detection.options import DetectionOptions
from tasks.detection.task import Detection
from training.checkpoint import read_checkpoint
from training.errors import CheckpointError


@dataclasses.dataclass(frozen=True)
class SavedDetector:
    """A detector in evaluation mode, and what it was trained with."""

    model: nn.Module
    options: DetectionOptions
    categories: list[Category]
    normalization: Normalization


def load_detector(path: str) -> SavedDetector:
    """The detector of `path`, best.pth or last.pth of a run.

    Raises:
        CheckpointError: it is missing, damaged, or no checkpoint of `detect.py`.
        OptionError: its backbone cannot be built here.
    """
    content = read_checkpoint(path)
    if content.get("task") != Detection.name:
        raise CheckpointError(
            f"{path} is of a run of {content.get('task', 'classification')}, expected {Detection.name}"
        )
    known = {field.name for field in dataclasses.fields(DetectionOptions)}
    options = DetectionOptions(**{name: value for name, value in content["options"].items() if name in known})
    categories = [Category(number, name) for number, name in content["categories"]]
    model, _ = build_model(without_fetching(options), len(categories))
    try:
        model.load_state_dict(content["model"])
    except RuntimeError as error:
        raise CheckpointError(f"{path} does not fit {options.detector} with {options.model}: {error}") from error
    mean, std = content["normalization"]
    return SavedDetector(model.eval(), options, categories, Normalization(tuple(mean), tuple(std)))
