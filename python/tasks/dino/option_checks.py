# SPDX-License-Identifier: MIT
"""Checks of the options of `dino.py`: which one holds, and which combinations contradict each other."""

from __future__ import annotations

from networks.option_checks import check_model_kwargs, check_model_name
from tasks.dino.options import DinoOptions
from training.errors import OptionError
from training.option_checks import check_combinations, check_values, refuse_idle, require_all, resume_options

# Without --data-path: handwritten digits on a canvas, learned in minutes on a CPU. The schedules are for some hundred
# steps: a teacher whose momentum ends at 1 would stay behind its student.
DIGITS_RECIPE = dict(
    model="container_tiny",
    model_kwargs={
        "embed_dims": (48, 96, 192),
        "depths": (1, 2, 1),
        "strides": (4, 2, 2),
        "num_heads": (1, 2, 4),
        "mlp_ratios": (4, 4, 4),
    },
    num_workers=0,
    views="digits",
    global_crops_size=32,
    local_crops_number=0,
    epochs=15,
    batch_size=64,
    lr=5e-4,
    unscale_lr=True,
    warmup_epochs=1,
    drop_path=0.0,
    weight_decay_end=0.04,
    out_dim=256,
    head_hidden_dim=256,
    head_bottleneck_dim=64,
    momentum_teacher=0.98,
    momentum_teacher_end=0.995,
    eval_every=3,
)

CHANGEABLE_ON_RESUME = {"data_path", "val_path", "knn_k", "knn_temperature"}


def resolve(explicit: dict, saved: dict | None = None) -> DinoOptions:
    """Explicit options, then those of the resumed run, then the digits recipe, then the official defaults.

    Raises:
        OptionError: an explicit option would change the recipe of the resumed run `saved`.
    """
    if explicit.get("clip_grad") == 0:  # as the official program spells no clipping
        explicit = {**explicit, "clip_grad": None}
    if saved is not None:
        return DinoOptions(**resume_options(DinoOptions, explicit, saved, CHANGEABLE_ON_RESUME))
    recipe = {} if "data_path" in explicit else DIGITS_RECIPE
    if "model" in explicit:  # the recipe's arguments are of its own network
        recipe = {name: value for name, value in recipe.items() if name != "model_kwargs"}
    return DinoOptions(**{**recipe, **explicit})


def check(options: DinoOptions, explicit: set[str], world_size: int = 1) -> None:
    """Refuse impossible values and contradictions; `explicit` holds the names of the options that the user gave.

    Raises:
        OptionError: names the option, what is allowed and what came.
    """
    check_values(options, explicit)
    check_model_name(options.model)
    check_model_kwargs(options.model_kwargs)
    counts = ("out_dim", "head_hidden_dim", "head_bottleneck_dim", "global_crops_size", "local_crops_size")
    require_all(options, counts, lambda value: value >= 1, "1 or more")
    not_negative = (
        "local_crops_number", "freeze_last_layer", "warmup_teacher_temp_epochs", "weight_decay_end", "color_strength",
    )  # fmt: skip
    require_all(options, not_negative, lambda value: value >= 0, "0 or more")
    temperatures = ("student_temp", "teacher_temp", "warmup_teacher_temp", "knn_temperature")
    require_all(options, temperatures, lambda value: value > 0, "more than 0")
    parts = ("momentum_teacher", "momentum_teacher_end", "hflip")
    require_all(options, parts, lambda value: 0 <= value <= 1, "from 0 to 1")
    require_all(options, ("center_momentum", "drop_path"), lambda value: 0 <= value < 1, "0 or more and less than 1")
    require_all(options, ("holdout",), lambda value: 0 < value < 1, "between 0 and 1")
    require_all(options, ("knn_k",), lambda ks: all(k >= 1 for k in ks), "each 1 or more")
    scales = ("global_crops_scale", "local_crops_scale")
    require_all(options, scales, lambda pair: 0 < pair[0] <= pair[1] <= 1, "two numbers, 0 < MIN <= MAX <= 1")
    if options.local_crops_number and options.local_crops_size > options.global_crops_size:
        raise OptionError(
            f"--local-crops-size {options.local_crops_size} is more than --global-crops-size "
            f"{options.global_crops_size}"
        )
    if options.model_ema:
        raise OptionError("--model-ema has no effect here: the teacher is the moving average")
    if options.val_path and not options.data_path:
        raise OptionError("--val-path needs --data-path")
    check_combinations(options, explicit, world_size)
    refuse_idle(explicit, _conditions(options))


def _conditions(options: DinoOptions):
    """(name, whether it matters, why not) for every option that only matters together with another."""
    local, photographs = options.local_crops_number > 0, options.views == "photographs"
    yield "local_crops_size", local, "with --local-crops-number 0"
    yield "local_crops_scale", local and photographs, "without local views of photographs"
    for name in ("global_crops_scale", "hflip", "color_strength", "blur"):
        yield name, photographs, f"with --views {options.views}"
    yield "clip_mode", options.clip_grad is not None, "without --clip-grad"
    yield "checkpoint_key", options.initial_checkpoint is not None, "without --initial-checkpoint"
    warms = options.warmup_teacher_temp_epochs > 0
    yield "warmup_teacher_temp", warms, "without --warmup-teacher-temp-epochs"
