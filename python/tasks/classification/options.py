# SPDX-License-Identifier: MIT
"""The options of `train.py`, and those that programs share which look at a trained classifier.

Names and defaults are those of DeiT's `main.py`, which trained the released network. `option_checks` says which
combinations are allowed.
"""

from __future__ import annotations

import dataclasses

from labelled_images.class_order import CLASS_ORDERS
from labelled_images.options import DataOptions
from training.options import option
from training.shared_options import ImageOptions, TrainingOptions


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(TrainingOptions, ImageOptions, DataOptions):
    """Everything a run is told."""

    class_order: str = option(
        "text", "number class folders as text (1, 10, 2), as torchvision, or in natural order (1, 2, 10), as timm",
        "data", choices=CLASS_ORDERS,
    )  # fmt: skip
    mean: tuple[float, ...] | None = option(
        None, "mean of the channels, from 0 to 1 (default: the model's)", "data", nargs=3, metavar=("R", "G", "B")
    )
    std: tuple[float, ...] | None = option(
        None, "deviation of the channels (default: the model's)", "data", nargs=3, metavar=("R", "G", "B")
    )
    train_fraction: float = option(
        1.0, "train on this part of every class; --seed chooses the images, a smaller part is in every larger", "data"
    )
    val_fraction: float = option(1.0, "judge on this part of every class, always the same images", "data")
    epoch_repeats: int = option(1, "passes over the training images that count as one epoch", "data")

    model: str = option("container_light", "any model known to timm", "model")
    drop: float = option(0.0, "dropout before the classifier", "model")
    drop_path: float = option(0.1, "stochastic depth, the rate of the last block", "model")

    aa: str = option("rand-m9-mstd0.5-inc1", "timm's name of an augmentation policy, or none", "augmentation")
    color_jitter: float = option(0.4, "color jitter where no --aa policy is in force", "augmentation")
    hflip: float = option(0.5, "probability of a horizontal flip", "augmentation")
    train_interpolation: str = option(
        "bicubic", "resampling of training images", "augmentation", choices=("random", "bilinear", "bicubic")
    )
    repeated_aug: bool = option(True, "three augmented copies of each drawn image", "augmentation")
    reprob: float = option(0.25, "probability of random erasing", "augmentation")
    remode: str = option("pixel", "what is put there", "augmentation", choices=("const", "rand", "pixel"))
    recount: int = option(1, "rectangles erased at most", "augmentation")
    mixup: float = option(0.8, "mixup alpha, 0 turns it off", "augmentation")
    cutmix: float = option(1.0, "cutmix alpha, 0 turns it off", "augmentation")
    cutmix_minmax: tuple[float, ...] | None = option(
        None, "cutmix by side ratios in place of alpha", "augmentation", nargs=2, metavar=("MIN", "MAX")
    )
    mixup_prob: float = option(1.0, "probability of mixing", "augmentation")
    mixup_switch_prob: float = option(0.5, "probability of cutmix where both are on", "augmentation")
    mixup_mode: str = option("batch", "what shares one ratio", "augmentation", choices=("batch", "pair", "elem"))
    smoothing: float = option(0.1, "label smoothing", "augmentation")

    eval: bool = option(False, "only evaluate the weights of --resume or --initial-checkpoint", "run")
