# SPDX-License-Identifier: MIT
"""A trained detector as the start of another: `detect.py --initial-checkpoint`, on the same objects or on others."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from tasks.detection.annotations import Category
from tasks.detection.detectors import build_detector
from tasks.detection.detectors.settings import DetectorSettings
from tasks.detection.options import DetectionOptions
from tasks.detection.task import Detection
from training.checkpoint import read_checkpoint
from training.errors import CheckpointError


def options_of_start(path: str, has_data: bool) -> dict[str, Any]:
    """What --initial-checkpoint says of the detector, for options that are not given.

    Raises:
        CheckpointError: the file is missing, damaged or none of `detect.py`.
    """
    saved = _read(path)["options"]
    built = {name: saved[name] for name in ("detector", "model", "model_kwargs", "queries") if name in saved}
    # The two recipes have detectors of one size; that of the scenes has no flips.
    return {**built, "recipe": "small" if has_data and saved["recipe"] == "scenes" else saved["recipe"]}


def load_detector_weights(
    model: nn.Module, options: DetectionOptions, settings: DetectorSettings, categories: list[Category]
) -> str:
    """Fill `model` with the weights of --initial-checkpoint, and say so in a line.

    For other categories, also for as many of other names, the layers that score them stay fresh.

    Raises:
        CheckpointError: the file is missing, damaged or none of `detect.py`, or is of another detector.
    """
    path = options.initial_checkpoint
    content = _read(path)
    trained = [name for _, name in content["categories"]]
    same = trained == [category.name for category in categories]
    weights: dict[str, Tensor] = content["model"]
    own = model.state_dict()
    fresh = set() if same else _scores_of_categories(own, options, settings, len(categories))
    # Frozen norms count no batches.
    names = {name for name in own.keys() | weights.keys() if not name.endswith("num_batches_tracked")}
    differing = {name for name in names if _shape(own, name) != _shape(weights, name)} - fresh
    if differing:
        first = min(differing)
        expected, got = _shape(own, first), _shape(weights, first)
        raise CheckpointError(
            f"--initial-checkpoint {path} does not fit {options.detector} with {options.model}: "
            f"{len(differing)} weights differ, first {first}: expected {expected}, got {got}"
        )
    model.load_state_dict({name: own[name] if name in fresh else weights.get(name, own[name]) for name in own})
    scores = f"; {len(fresh)} weights that score categories are fresh, for {len(categories)} others" if fresh else ""
    return f"{len(own) - len(fresh)} weights of {path} loaded{scores}"


def _scores_of_categories(
    own: dict[str, Tensor], options: DetectionOptions, settings: DetectorSettings, count: int
) -> set[str]:
    """The weights whose shape goes by the number of categories."""
    other = build_detector(options.detector, count + 1, settings).state_dict()
    return {name for name, tensor in own.items() if tensor.shape != other[name].shape}


def _shape(weights: dict[str, Tensor], name: str) -> tuple[int, ...] | None:
    return tuple(weights[name].shape) if name in weights else None


def _read(path: str) -> dict[str, Any]:
    content = read_checkpoint(path)
    if content.get("task") != Detection.name:
        raise CheckpointError(
            f"--initial-checkpoint {path} is of a run of {content.get('task', 'classification')}, expected "
            f"{Detection.name}; the weights of a classifier are for --backbone-checkpoint"
        )
    return content
