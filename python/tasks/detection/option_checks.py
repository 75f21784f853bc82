# SPDX-License-Identifier: MIT
"""Checks of the options of `detect.py`: which one holds, and which combinations contradict each other."""

from __future__ import annotations

import timm

import container_kernels  # noqa: F401  registers our models with timm
from tasks.detection.fine_tuning import options_of_start
from tasks.detection.options import SET_DETECTORS, DetectionOptions
from tasks.detection.recipes import Values, recipe_values
from training.errors import OptionError
from training.option_checks import (
    check_combinations,
    check_values,
    refuse_idle,
    require_all,
    require_file,
    resume_options,
)

CHANGEABLE_ON_RESUME = {"data_path", "val_path", "eval", "check_data", "list_backbones"}
DEFAULT_DETECTOR = "retinanet"


def resolve(explicit: dict, saved: dict | None = None) -> DetectionOptions:
    """Explicit options, then those of the resumed run, then the recipe's.

    Raises:
        OptionError: an explicit option would change the recipe of the resumed run `saved`, or there is no such recipe.
    """
    if saved is not None:
        return DetectionOptions(**resume_options(DetectionOptions, explicit, saved, CHANGEABLE_ON_RESUME))
    if "initial_checkpoint" in explicit:
        require_file("initial_checkpoint", explicit["initial_checkpoint"])
        start = options_of_start(explicit["initial_checkpoint"], "data_path" in explicit)
        if explicit.get("model", start["model"]) != start["model"]:
            start.pop("model_kwargs", None)
        explicit = {**start, "freeze_bn": not (explicit.get("live_bn") or explicit.get("sync_bn")), **explicit}
    detector = explicit.get("detector", DEFAULT_DETECTOR)
    values = recipe_values(explicit.get("recipe"), detector, "data_path" in explicit)
    if "model" in explicit:  # the recipe's arguments are of its own backbone
        values.pop("model_kwargs", None)
    return DetectionOptions(**{**values, **_decays_in_proportion(values, explicit), **explicit})


def _decays_in_proportion(values: Values, explicit: dict) -> Values:
    """The recipe's milestones for the epochs that were given: 8 and 11 of 12 are 24 and 33 of 36."""
    if (
        "epochs" not in explicit
        or "decay_milestones" not in values
        or explicit.get("sched", "multistep") != "multistep"
    ):
        return {}
    epochs = explicit["epochs"]
    scaled = {round(milestone * epochs / values["epochs"]) for milestone in values["decay_milestones"]}
    milestones = tuple(sorted(milestone for milestone in scaled if 0 < milestone < epochs))
    return {"decay_milestones": milestones} if milestones else {"sched": "constant"}


def check(options: DetectionOptions, explicit: set[str], world_size: int = 1) -> None:
    """Refuse impossible values and contradictions; `explicit` holds the names of the options that the user gave.

    Raises:
        OptionError: names the option, what is allowed and what came.
    """
    check_values(options, explicit)
    counts = ("train_scenes", "val_scenes", "longest_side", "queries")
    require_all(options, counts, lambda value: value >= 1, "1 or more")
    require_all(options, ("short_sides",), lambda value: all(side >= 1 for side in value), "each 1 or more")
    require_all(options, ("hflip",), lambda value: 0 <= value <= 1, "from 0 to 1")
    require_all(options, ("drop_path",), lambda value: 0 <= value < 1, "0 or more and less than 1")
    scales = ("backbone_lr_scale", "sampling_lr_scale")
    require_all(options, scales, lambda value: value >= 0, "0 or more")
    if not timm.is_model(options.model):
        raise OptionError(f"--model {options.model} is not known to timm; --list-backbones names ours")
    if not options.resume:  # then its weights are in the checkpoint, and the file may be gone
        require_file("backbone_checkpoint", options.backbone_checkpoint)
    require_file("eval", options.eval)
    if options.val_path and not options.data_path:
        raise OptionError("--val-path needs --data-path")
    if options.initial_checkpoint and options.backbone_checkpoint:
        raise OptionError("--initial-checkpoint has the backbone's weights, too: leave --backbone-checkpoint out")
    if options.freeze_bn and (options.live_bn or options.sync_bn):
        raise OptionError("--freeze-bn contradicts --live-bn and --sync-bn: give one of them")
    pretrained = (options.model_kwargs or {}).get("pretrained", False)
    if options.freeze_bn and not (
        options.resume or options.initial_checkpoint or options.backbone_checkpoint or pretrained
    ):
        raise OptionError("--freeze-bn needs weights: norms that are frozen at their first values do not normalize")
    check_combinations(options, explicit, world_size)
    refuse_idle(explicit, _conditions(options))


def _conditions(options: DetectionOptions):
    """(name, whether it matters, why not) for every option that only matters together with another."""
    yield "train_scenes", options.data_path is None, "with --data-path"
    yield "val_scenes", options.data_path is None, "with --data-path"
    yield "check_data", options.data_path is not None, "without --data-path"
    starts = options.backbone_checkpoint is not None or options.initial_checkpoint is not None
    yield "live_bn", starts, "without --backbone-checkpoint or --initial-checkpoint: norms are live then"
    yield "checkpoint_key", options.backbone_checkpoint is not None, "without --backbone-checkpoint"
    yield "queries", options.detector in SET_DETECTORS, f"with --detector {options.detector}"
    yield "sampling_lr_scale", options.detector == "deformable-detr", f"with --detector {options.detector}"
