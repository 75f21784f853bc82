# SPDX-License-Identifier: MIT
"""Recipes by name: public ones for COCO, and short ones for small detectors. A given option goes before them.

Learning rates are for a global batch of 16 images; for others they are scaled (`DetectionOptions.LR_BATCH`).
"""

from __future__ import annotations

from typing import Any

from tasks.detection.detectors.settings import PRESETS
from training.errors import OptionError

Values = dict[str, Any]
"""Options by the names of their fields."""

_SCENES = PRESETS["scenes"]["retinanet"]
MULTI_SCALE = tuple(range(480, 801, 32))

_COMMON: Values = dict(model_ema=False, batch_size=2, min_lr=0.0, sched="multistep", decay_rate=0.1)
_ONE_SIZE: Values = dict(short_sides=(800,), longest_side=1333, random_crops=False)
_MANY_SIZES: Values = dict(short_sides=MULTI_SCALE, longest_side=1333, random_crops=True)
_12_EPOCHS: Values = dict(epochs=12, decay_milestones=(8, 11), warmup_steps=500)
_DETR: Values = dict(
    _COMMON, **_MANY_SIZES, opt="adamw", weight_decay=1e-4, decay_norms=True, clip_grad=0.1, warmup_steps=0,
    backbone_lr_scale=0.1, epochs=50,
)  # fmt: skip

_SMALL: Values = dict(
    model_ema=False, opt="adamw", weight_decay=0.05, sched="cosine", min_lr=0.0, unscale_lr=True, warmup_epochs=0,
    warmup_lr=1e-6, warmup_steps=50, random_crops=False, model=_SCENES.backbone,
    model_kwargs=dict(_SCENES.model_kwargs), drop_path=_SCENES.drop_path,
)  # fmt: skip

# Recipe -> what it says, and what it says of one detector.
RECIPES: dict[str, Values] = {
    # PVT's configurations for mmdetection: CONTAINER has the widths of its pyramid.
    "1x": dict(
        _COMMON, **_ONE_SIZE, **_12_EPOCHS, opt="adamw", lr=1e-4, warmup_lr=1e-7, weight_decay=1e-4, decay_norms=True,
    ),
    # Swin's for Mask R-CNN.
    "swin-1x": dict(_COMMON, **_MANY_SIZES, **_12_EPOCHS, opt="adamw", lr=1e-4, warmup_lr=1e-7, weight_decay=0.05),
    # mmdetection's and detectron2's for ResNet-50.
    "r50-1x": dict(
        _COMMON, **_ONE_SIZE, **_12_EPOCHS, opt="sgd", momentum=0.9, lr=0.02, warmup_lr=2e-5, weight_decay=1e-4,
        decay_norms=True,
    ),
    "detr-50": dict(_DETR, lr=1e-4, decay_milestones=(33,)),
    "detr-300": {**_DETR, "lr": 1e-4, "epochs": 300, "decay_milestones": (200,)},
    "smca-50": dict(_DETR, lr=1e-4, decay_milestones=(40,)),
    "deformable-50": dict(_DETR, lr=2e-4, decay_milestones=(40,), sampling_lr_scale=0.1),
    # Small detectors, from nothing: minutes on two cores.
    "scenes": dict(
        _SMALL, batch_size=8, num_workers=0, short_sides=(128,), longest_side=128, hflip=0.0, group_aspects=False,
    ),
    # The same for a few hundred photographs; give --epochs by how many there are.
    "small": dict(_SMALL, batch_size=4, short_sides=(192,), longest_side=256),
}  # fmt: skip
# Recipes for the sizes of `PRESETS["scenes"]`.
OF_SMALL_DETECTORS = ("scenes", "small")
_OF_SMALL: dict[str, Values] = {
    "retinanet": dict(lr=2e-3, epochs=8),
    "faster-rcnn": dict(lr=1.5e-3, epochs=8),
    "mask-rcnn": dict(lr=1.5e-3, epochs=6),
    "detr": dict(lr=3e-4, epochs=16, clip_grad=0.1),
    "conditional-detr": dict(lr=3e-4, epochs=16, clip_grad=0.5),
    "smca-detr": dict(lr=3e-4, epochs=24, clip_grad=0.5),
    "deformable-detr": dict(lr=1e-3, epochs=10, clip_grad=0.5),
}
OF_DETECTOR: dict[tuple[str, str], Values] = {
    ("1x", "mask-rcnn"): dict(lr=2e-4, warmup_lr=2e-7),
    ("1x", "faster-rcnn"): dict(lr=2e-4, warmup_lr=2e-7),
    ("r50-1x", "retinanet"): dict(lr=0.01, warmup_lr=1e-5),
    **{(recipe, detector): values for recipe in OF_SMALL_DETECTORS for detector, values in _OF_SMALL.items()},
}
DEFAULT_RECIPES = {
    "retinanet": "1x",
    "faster-rcnn": "1x",
    "mask-rcnn": "1x",
    "detr": "detr-50",
    "conditional-detr": "smca-50",
    "smca-detr": "smca-50",
    "deformable-detr": "deformable-50",
}


def recipe_values(recipe: str | None, detector: str, has_data: bool) -> Values:
    """The options of a recipe for a detector; None: the detector's own, or without data that of the scenes.

    Raises:
        OptionError: there is no such recipe.
    """
    name = recipe or (DEFAULT_RECIPES[detector] if has_data else "scenes")
    if name not in RECIPES:
        raise OptionError(f"--recipe: expected one of {', '.join(RECIPES)}, got {name!r}")
    return {**RECIPES[name], **OF_DETECTOR.get((name, detector), {}), "recipe": name}
