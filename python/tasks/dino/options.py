# SPDX-License-Identifier: MIT
"""The options of `dino.py`: names and defaults are those of the official main_dino.py, where it has them.

`option_checks` has the defaults without --data-path, and says what goes together.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

from labelled_images.options import DataOptions
from tasks.dino.neighbours import NEIGHBOURS, TEMPERATURE
from training.options import option
from training.shared_options import TrainingOptions


@dataclasses.dataclass(frozen=True, kw_only=True)
class DinoOptions(TrainingOptions, DataOptions):
    """Everything a run is told."""

    LR_BATCH: ClassVar[int] = 256
    # Names of the official program, and short ones.
    FLAG_ALIASES: ClassVar[Mapping[str, str]] = {
        "arch": "model",
        "optimizer": "opt",
        "batch_size_per_gpu": "batch_size",
        "drop_path_rate": "drop_path",
        "local_crops": "local_crops_number",
    }

    holdout: float | None = option(
        None, "train on the rest of the training images and judge on this part of every class, to choose settings "
        "without looking at the validation images", "data",
    )  # fmt: skip

    model: str = option("container_light", "any model known to timm", "model")
    drop_path: float = option(0.1, "stochastic depth of the student, the rate of the last block", "model")
    model_ema: bool = option(False, "not here: the teacher is the moving average", "model")

    out_dim: int = option(65536, "prototypes: outputs of the head", "head")
    head_hidden_dim: int = option(2048, "channels of the head's hidden layers", "head")
    head_bottleneck_dim: int = option(256, "channels before the prototypes", "head")
    norm_last_layer: bool = option(True, "prototypes of norm 1; without, larger networks may not be stable", "head")
    use_bn_in_head: bool = option(False, "batch norms in the head", "head")
    freeze_last_layer: int = option(1, "epochs in which the prototypes stay as they are", "head")

    momentum_teacher: float = option(0.996, "the teacher's momentum at first; 0.9995 for batches of 256", "teacher")
    momentum_teacher_end: float = option(1.0, "the teacher's momentum at the end, along a cosine", "teacher")
    warmup_teacher_temp: float = option(0.04, "temperature of the teacher at first", "teacher")
    teacher_temp: float = option(
        0.04, "temperature of the teacher after its warm-up: above 0.07 is not stable", "teacher"
    )
    warmup_teacher_temp_epochs: int = option(0, "epochs of linear warm-up of the teacher's temperature", "teacher")
    center_momentum: float = option(0.9, "momentum of the centre of the teacher's outputs", "teacher")
    student_temp: float = option(0.1, "temperature of the student", "teacher")

    global_crops_size: int = option(224, "height and width of the two global views", "views")
    global_crops_scale: tuple[float, ...] = option(
        (0.4, 1.0), "part of the image in a global view", "views", nargs=2, metavar=("MIN", "MAX")
    )
    local_crops_number: int = option(8, "local views per image; 0 for none", "views")
    local_crops_size: int = option(96, "height and width of the local views", "views")
    local_crops_scale: tuple[float, ...] = option(
        (0.05, 0.4), "part of the image in a local view", "views", nargs=2, metavar=("MIN", "MAX")
    )
    views: str = option(
        "photographs", "photographs: crops, flips, colours, blur; digits: placed, turned, with noise", "views",
        choices=("photographs", "digits"),
    )  # fmt: skip
    hflip: float = option(0.5, "probability of a horizontal flip", "views")
    color_strength: float = option(1.0, "strength of colour jitter: 1 is the official one, 0 is none", "views")
    blur: bool = option(True, "Gaussian blur, and solarization in the second global view", "views")

    batch_size: int = option(64, "images per batch and process", "data")
    epochs: int = option(100, "passes over the training images", "optimization")
    weight_decay: float = option(0.04, "weight decay of matrices and filters at first", "optimization")
    weight_decay_end: float = option(0.4, "weight decay at the end, along a cosine", "optimization")
    clip_grad: float | None = option(3.0, "clip the norm of the gradient to this; 0 for no clipping", "optimization")
    clip_mode: str = option(
        "parameter", "clip each parameter's gradient by itself, as the official program does, or all together",
        "optimization", choices=("parameter", "global"),
    )  # fmt: skip
    lr: float = option(5e-4, "peak learning rate for a global batch of 256, scaled linearly", "optimization")
    min_lr: float = option(1e-6, "where cosine and poly end", "optimization")
    warmup_epochs: int = option(10, "epochs of linear warm-up", "optimization")
    warmup_lr: float = option(0.0, "where the warm-up starts", "optimization")
    warmup_prefix: bool = option(True, "begin the schedule after the warm-up, in place of under it", "optimization")

    knn_k: tuple[int, ...] = option(NEIGHBOURS, "numbers of neighbours", "evaluation", nargs="+", metavar="K")
    knn_temperature: float = option(TEMPERATURE, "temperature of the neighbours' votes", "evaluation")
    controls: bool = option(
        True, "measure the untrained network and raw pixels as well, once, before the first evaluation", "evaluation"
    )
    eval_every: int = option(10, "epochs from one evaluation to the next; the last epoch is always evaluated", "run")
