# SPDX-License-Identifier: MIT
"""The options of `detect.py`. What is left out comes from the recipe (`recipes`); `option_checks` says what goes
together.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from tasks.detection.recipes import RECIPES
from training.options import option
from training.shared_options import TrainingOptions

# Those that find a set of objects by queries; without data they get few, large digits, since they learn slowly.
SET_DETECTORS = ("detr", "conditional-detr", "smca-detr", "deformable-detr")
DETECTOR_NAMES = ("retinanet", "mask-rcnn", "faster-rcnn", *SET_DETECTORS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DetectionOptions(TrainingOptions):
    """Everything a run is told."""

    LR_BATCH: ClassVar[int] = 16
    # What --help says in place of a field's own default.
    DEFAULTS_ELSEWHERE: ClassVar[dict[str, str]] = dict.fromkeys(
        sorted({name for values in RECIPES.values() for name in values} - {"model_kwargs", "num_workers"}),
        "the recipe's",
    )

    data_path: str | None = option(
        None, "folder or tar with COCO's or Pascal VOC's files (default: scenes of handwritten digits)", "data"
    )
    val_path: str | None = option(None, "folder or tar to validate on, where it is another one", "data")
    train_scenes: int = option(1000, "without --data-path: scenes to train on", "data")
    val_scenes: int = option(200, "without --data-path: scenes to validate on", "data")
    group_aspects: bool = option(True, "batches of images that are all wide or all high", "data")

    detector: str = option("retinanet", "what finds objects", "model", choices=DETECTOR_NAMES)
    model: str = option("container_light", "the backbone: any model of timm with features_only", "model")
    queries: int | None = option(
        None, "most objects that a DETR can find in an image (default: the detector's own)", "model"
    )
    backbone_checkpoint: str | None = option(
        None, "weights of a classifier for the backbone; its norms are frozen then", "model"
    )
    freeze_bn: bool = option(
        False, "constant batch norms in the backbone, as with weights from a file; for pretrained=True", "model"
    )
    live_bn: bool = option(
        False, "batch statistics in the backbone although it starts from weights: for large batches", "model"
    )
    drop_path: float = option(0.1, "stochastic depth of the backbone, the rate of its last block", "model")

    recipe: str | None = option(
        None, "values for what is not given (default: the detector's own)", "optimization", choices=tuple(RECIPES)
    )
    lr: float = option(1e-4, "peak learning rate for a global batch of 16, scaled linearly", "optimization")
    backbone_lr_scale: float = option(1.0, "the backbone's part of the learning rate", "optimization")
    sampling_lr_scale: float = option(
        1.0, "deformable-detr: the part of reference points and sampling offsets", "optimization"
    )
    decay_norms: bool = option(False, "weight decay for norms and biases too, as mmdetection has it", "optimization")

    short_sides: tuple[int, ...] = option(
        (800,), "short sides of training images, of which each gets one; validation has the last", "augmentation",
        nargs="+", metavar="PIXELS",
    )  # fmt: skip
    longest_side: int = option(1333, "the most that a long side may be", "augmentation")
    hflip: float = option(0.5, "probability of a horizontal flip", "augmentation")
    random_crops: bool = option(False, "cut half of the training images, as DETR does", "augmentation")

    eval: str | None = option(None, "only evaluate this checkpoint, on --data-path or its own data", "run")
    check_data: bool = option(False, "only list the mistakes in the files of --data-path", "run")
    list_backbones: bool = option(False, "only list which of our networks serve as backbones", "run")
