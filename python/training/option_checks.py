# SPDX-License-Identifier: MIT
"""Checks of the engine's options: which one holds, and which combinations contradict each other."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable

import timm.optim
import torch

from training.errors import OptionError
from training.optimization import ends_at_min_lr, global_batch, has_warmup, peak_lr
from training.options import flag
from training.shared_options import TrainingOptions

# A resumed run may move to another machine or be prolonged; every other change would make it a different run.
CHANGEABLE_ON_RESUME = {
    "num_workers", "epochs", "output_dir", "device", "amp_dtype", "channels_last", "compile", "log_seconds",
    "limit_batches", "eval_every", "resume",
}  # fmt: skip
# The weights that a run started from are in its checkpoints, and their file may be gone.
NEVER_INHERITED = {"device", "resume", "output_dir", "initial_checkpoint"}


def resume_options(cls: type, explicit: dict, saved: dict, changeable: set[str] = frozenset()) -> dict:
    """Explicit options, then those of the resumed run `saved`, as arguments of the dataclass `cls`.

    `changeable` are options of the task that may change like `CHANGEABLE_ON_RESUME`.

    Raises:
        OptionError: an explicit option would change the recipe of the resumed run.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(cls)}
    for name, value in explicit.items():
        before = saved.get(name, defaults[name])  # an option that is younger than the run had no other effect then
        if name not in CHANGEABLE_ON_RESUME | changeable and _tuples(before) != _tuples(value):
            raise OptionError(
                f"{flag(name)} {_words(value)} contradicts the resumed run, which has {_words(before)}; "
                "leave it out, or start a new run from these weights with --initial-checkpoint"
            )
    known = defaults.keys() - NEVER_INHERITED
    return {**{name: value for name, value in saved.items() if name in known}, **explicit}


def _tuples(value):
    """depths=[1, 2] means what depths=(1, 2) does."""
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, (list, tuple)) else value


def _words(value) -> str:
    """As on a command line."""
    if isinstance(value, dict):
        return " ".join(f"{key}={item}" for key, item in value.items())
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def check_values(options: TrainingOptions, explicit: set[str]) -> None:
    """Refuse impossible values, one by one; `explicit` holds the names of the options that the user gave.

    Raises:
        OptionError: names the option, what is allowed and what came.
    """
    counts = ("limit_batches", "epochs", "batch_size", "accumulate_steps", "eval_every")
    require_all(options, counts, lambda value: value >= 1, "1 or more")
    parts = ("num_workers", "warmup_epochs", "seed", "weight_decay", "min_lr", "warmup_steps", "warmup_lr")
    require_all(options, parts, lambda value: value >= 0, "0 or more")
    positive = ("lr", "opt_eps", "clip_grad", "decay_epochs", "decay_rate", "log_seconds")
    require_all(options, positive, lambda value: value > 0, "more than 0")
    require_all(options, ("momentum",), lambda value: 0 <= value < 1, "0 or more and less than 1")
    require_all(options, ("model_ema_decay",), lambda value: 0 < value < 1, "between 0 and 1")
    require_all(
        options, ("opt_betas",), lambda value: all(0 <= beta < 1 for beta in value), "each 0 or more and less than 1"
    )
    check_compute(options.device, options.amp_dtype)
    _check_optimizer(options, explicit)
    if options.resume and options.initial_checkpoint:
        raise OptionError("--resume continues a run, --initial-checkpoint starts one: give only one of them")
    require_file("initial_checkpoint", options.initial_checkpoint)


def check_combinations(options: TrainingOptions, explicit: set[str], world_size: int) -> None:
    """Refuse what contradicts itself: a default may be idle, a given option must matter.

    Raises:
        OptionError: names the option, what is allowed and what came.
    """
    _check_schedule(options, world_size)
    refuse_idle(explicit, _conditions(options, world_size))
    if options.sync_bn and device_type(options.device) == "cpu":
        raise OptionError("--sync-bn needs GPUs: PyTorch has no synchronized batch norm on a CPU")


def require_all(options: object, names: Iterable[str], allowed: Callable[..., bool], description: str) -> None:
    """Raises OptionError unless each of the fields `names` is None or `allowed`, which `description` says in words."""
    for name in names:
        value = getattr(options, name)
        if value is not None and not allowed(value):
            raise OptionError(f"{flag(name)} must be {description}, got {value}")


def refuse_idle(explicit: set[str], conditions: Iterable[tuple[str, bool, str]]) -> None:
    """Raises OptionError for an explicit option without effect; of each: its name, whether it matters, why not."""
    for name, matters, reason in conditions:
        if name in explicit and not matters:
            raise OptionError(f"{flag(name)} has no effect {reason}")


def _check_optimizer(options: TrainingOptions, explicit: set[str]) -> None:
    try:
        optimizer = timm.optim.get_optimizer_info(options.opt)
    except ValueError as error:
        raise OptionError(f"--opt {options.opt} is not known to timm, for example adamw, sgd, lamb") from error
    accepted = {
        "momentum": optimizer.has_momentum, "opt_betas": optimizer.has_betas, "opt_eps": optimizer.has_eps,
    }  # fmt: skip
    refuse_idle(explicit, ((name, has, f"with --opt {options.opt}") for name, has in accepted.items()))
    if options.opt_betas is not None and len(options.opt_betas) != (optimizer.num_betas or len(options.opt_betas)):
        raise OptionError(f"--opt-betas: {options.opt} takes {optimizer.num_betas}, got {len(options.opt_betas)}")


def check_compute(device: str, amp_dtype: str | None) -> None:
    """Raises OptionError for a device this machine lacks or a dtype the device cannot train with."""
    if amp_dtype not in (None, "bfloat16", "float16", "float32"):
        raise OptionError(f"--amp-dtype must be bfloat16, float16 or float32, got {amp_dtype}")
    try:
        kind = device_type(device)
    except RuntimeError as error:
        raise OptionError(f"--device must be auto, cpu, cuda or cuda:N, got {device}") from error
    if kind not in ("cpu", "cuda"):
        raise OptionError(f"--device must be auto, cpu, cuda or cuda:N, got {device}")
    if kind == "cuda" and not torch.cuda.is_available():
        raise OptionError(f"--device {device}: this PyTorch ({torch.__version__}) sees no GPU")
    if device.startswith("cuda:") and torch.device(device).index >= torch.cuda.device_count():
        raise OptionError(f"--device {device}: this machine has {torch.cuda.device_count()} GPUs")
    if kind == "cpu" and amp_dtype == "float16":
        raise OptionError("--amp-dtype float16 needs a GPU; on a CPU use float32 or bfloat16")


def device_type(device: str) -> str:
    """cpu or cuda; auto is cuda if there is one. Raises RuntimeError for what PyTorch does not know."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device).type


def require_file(name: str, path: str | None) -> None:
    """Raises OptionError if the option was given and names no file."""
    if path is not None and not os.path.isfile(path):
        reason = "it is a folder, not a file" if os.path.isdir(path) else "there is no such file"
        raise OptionError(f"{flag(name)} {path}: {reason}")


def _check_schedule(options: TrainingOptions, world_size: int) -> None:
    if options.warmup_steps is None and options.warmup_epochs >= options.epochs:
        raise OptionError(f"--warmup-epochs {options.warmup_epochs} must be less than --epochs {options.epochs}")
    milestones = options.decay_milestones
    if options.sched == "multistep" and not milestones:
        raise OptionError("--sched multistep needs --decay-milestones: the epochs after which the learning rate decays")
    if options.sched == "multistep" and not all(
        0 < a < b for a, b in zip(milestones, (*milestones[1:], options.epochs), strict=True)
    ):
        raise OptionError(
            f"--decay-milestones must rise and lie between 0 and --epochs {options.epochs}, got "
            f"{' '.join(map(str, milestones))}"
        )
    peak = peak_lr(options, world_size)
    if ends_at_min_lr(options) and options.min_lr > peak:
        batch = global_batch(options, world_size)
        scaling = "" if options.unscale_lr else f" (--lr {options.lr:g} × batch {batch} / {options.LR_BATCH})"
        raise OptionError(
            f"--min-lr {options.min_lr:g} is above the peak learning rate {peak:g}{scaling}; "
            "lower --min-lr, raise --lr, or take --lr as it is with --unscale-lr"
        )


def _conditions(options: TrainingOptions, world_size: int):
    """(name, whether it matters, why not) for every option that only matters together with another."""
    yield "model_ema_decay", options.model_ema, "with --no-model-ema"
    yield "min_lr", ends_at_min_lr(options), f"with --sched {options.sched}"
    yield "decay_epochs", options.sched == "step", f"with --sched {options.sched}"
    yield "decay_rate", options.sched in ("step", "multistep", "poly"), f"with --sched {options.sched}"
    yield "decay_milestones", options.sched == "multistep", f"with --sched {options.sched}"
    yield "warmup_epochs", options.warmup_steps is None, "together with --warmup-steps, which replaces it"
    yield "warmup_lr", has_warmup(options), "without a warm-up"
    yield "warmup_prefix", has_warmup(options), "without a warm-up"
    yield "sync_bn", world_size > 1 or not options.sync_bn, "in one process; start with torchrun"
