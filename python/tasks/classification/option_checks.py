# SPDX-License-Identifier: MIT
"""Which option holds, and which combinations contradict each other: the one place that judges a command line."""

from __future__ import annotations

import dataclasses
import inspect
import os

import timm
import timm.optim
import torch
from timm.data.auto_augment import augment_and_mix_transform, auto_augment_transform, rand_augment_transform
from training.errors import OptionError
from training.options import Options, flag

import container_kernels  # noqa: F401  registers our models with timm

# Without --data-path: handwritten digits, small and without left-right symmetry, learned in about a minute on a CPU.
DIGITS_RECIPE = dict(
    model="container_tiny",
    input_size=32,
    num_workers=0,
    epochs=10,
    batch_size=64,
    lr=2e-3,
    unscale_lr=True,
    warmup_epochs=3,
    warmup_lr=1e-4,
    drop_path=0.0,
    model_ema=False,
    aa="none",
    color_jitter=0.0,
    hflip=0.0,
    train_interpolation="bilinear",
    repeated_aug=False,
    reprob=0.0,
    mixup=0.0,
    cutmix=0.0,
    smoothing=0.1,
)

# A resumed run may move to another machine or be prolonged; every other change would make it a different run.
CHANGEABLE_ON_RESUME = {
    "data_path", "val_path", "num_workers", "epochs", "output_dir", "device", "amp_dtype", "channels_last", "compile",
    "log_seconds", "limit_batches", "eval", "resume",
}  # fmt: skip
FLAGS_OF_MODEL_KWARGS = {
    "num_classes": "the data", "drop_rate": "--drop", "drop_path_rate": "--drop-path", "img_size": "--input-size",
}  # fmt: skip
# Of timm, not of the model: where weights come from, and other kinds of models.
ARGUMENTS_OF_TIMM = {*inspect.signature(timm.create_model).parameters, "features_only"} - {"kwargs"}
DEFAULTS = {field.name: field.default for field in dataclasses.fields(Options)}
NEVER_INHERITED = {"device", "eval", "resume", "output_dir"}


def resolve(explicit: dict, saved: dict | None = None) -> Options:
    """Explicit options, then those of the resumed run, then the digits recipe, then DeiT's defaults.

    Raises:
        OptionError: an explicit option would change the recipe of the resumed run `saved`.
    """
    if saved is None:
        recipe = {} if "data_path" in explicit else DIGITS_RECIPE
        return Options(**{**recipe, **explicit})
    for name, value in explicit.items():
        before = saved.get(name, DEFAULTS[name])  # an option that is younger than the run had no other effect then
        if name not in CHANGEABLE_ON_RESUME and _tuples(before) != _tuples(value):
            raise OptionError(
                f"{flag(name)} {_words(value)} contradicts the resumed run, which has {_words(before)}; "
                "leave it out, or start a new run from these weights with --initial-checkpoint"
            )
    known = DEFAULTS.keys() - NEVER_INHERITED
    return Options(**{**{name: value for name, value in saved.items() if name in known}, **explicit})


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


def check(options: Options, explicit: set[str], world_size: int = 1) -> None:
    """Refuse impossible values and contradictions.

    `explicit` holds the names of the options the user gave: a default may be idle, a given option must matter.

    Raises:
        OptionError: names the option, what is allowed and what came.
    """
    _check_ranges(options)
    _check_names(options, explicit)
    _check_files(options)
    if options.eval:
        return  # DeiT habit: --eval is appended to the training command, whose other options then do not matter
    _check_schedule(options, world_size)
    _check_mixing(options)
    for name, matters, reason in _conditions(options, world_size):
        if name in explicit and not matters:
            raise OptionError(f"{flag(name)} has no effect {reason}")
    if options.sync_bn and device_type(options.device) == "cpu":
        raise OptionError("--sync-bn needs GPUs: PyTorch has no synchronized batch norm on a CPU")


def _check_ranges(options: Options) -> None:
    for name in ("input_size", "limit_batches", "epochs", "epoch_repeats", "batch_size", "recount"):
        _require(options, name, lambda value: value >= 1, "1 or more")
    for name in ("num_workers", "warmup_epochs", "seed", "weight_decay", "min_lr", "color_jitter", "mixup", "cutmix"):
        _require(options, name, lambda value: value >= 0, "0 or more")
    for name in ("lr", "warmup_lr", "opt_eps", "clip_grad", "decay_epochs", "decay_rate", "log_seconds"):
        _require(options, name, lambda value: value > 0, "more than 0")
    for name in ("hflip", "reprob", "mixup_prob", "mixup_switch_prob"):
        _require(options, name, lambda value: 0 <= value <= 1, "from 0 to 1")
    for name in ("drop", "drop_path", "smoothing", "momentum"):
        _require(options, name, lambda value: 0 <= value < 1, "0 or more and less than 1")
    _require(options, "model_ema_decay", lambda value: 0 < value < 1, "between 0 and 1")
    for name in ("crop_pct", "train_fraction", "val_fraction"):
        _require(options, name, lambda value: 0 < value <= 1, "more than 0 and at most 1")
    _require(options, "mean", lambda value: all(0 <= part <= 1 for part in value), "three numbers from 0 to 1")
    _require(options, "std", lambda value: all(part > 0 for part in value), "three numbers above 0")
    _require(options, "opt_betas", lambda value: all(0 <= beta < 1 for beta in value), "each 0 or more and less than 1")


def _require(options: Options, name: str, allowed, description: str) -> None:
    value = getattr(options, name)
    if value is not None and not allowed(value):
        raise OptionError(f"{flag(name)} must be {description}, got {value}")


def _check_names(options: Options, explicit: set[str]) -> None:
    check_model_name(options.model)
    check_model_kwargs(options.model_kwargs)
    check_compute(options.device, options.amp_dtype)
    try:
        optimizer = timm.optim.get_optimizer_info(options.opt)
    except ValueError as error:
        raise OptionError(f"--opt {options.opt} is not known to timm, for example adamw, sgd, lamb") from error
    for name, accepted in (
        ("momentum", optimizer.has_momentum),
        ("opt_betas", optimizer.has_betas),
        ("opt_eps", optimizer.has_eps),
    ):
        if name in explicit and not accepted:
            raise OptionError(f"{flag(name)} has no effect with --opt {options.opt}")
    if options.opt_betas is not None and len(options.opt_betas) != (optimizer.num_betas or len(options.opt_betas)):
        raise OptionError(f"--opt-betas: {options.opt} takes {optimizer.num_betas}, got {len(options.opt_betas)}")
    if uses_policy(options):
        try:
            _policy_constructor(options.aa)(options.aa, {})
        except (AssertionError, KeyError, ValueError, IndexError) as error:
            raise OptionError(
                f"--aa {options.aa} is not a policy of timm, for example rand-m9-mstd0.5-inc1, augmix-m3-w3, none"
            ) from error


def check_model_name(name: str) -> None:
    """Raises OptionError unless timm knows the model (importing `container_kernels` registers ours)."""
    if not timm.is_model(name):
        raise OptionError(f"--model {name} is not known to timm; ours are {', '.join(timm.list_models('container*'))}")


def check_model_kwargs(model_kwargs: dict | None) -> None:
    """Raises OptionError for arguments that have flags of their own, or that timm would leave out."""
    for name, value in (model_kwargs or {}).items():
        if name in FLAGS_OF_MODEL_KWARGS:
            raise OptionError(f"--model-kwargs {name} is not possible: {FLAGS_OF_MODEL_KWARGS[name]} sets it")
        if name in ARGUMENTS_OF_TIMM:
            raise OptionError(
                f"--model-kwargs {name} is not possible: it is an argument of timm, not of the model; "
                "--initial-checkpoint starts from weights"
            )
        if value is None:
            raise OptionError(
                f"--model-kwargs {name}=None has no effect: timm takes it as the model's default "
                "(an entry a stage does: static=(None, None, None, None))"
            )


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


def _check_files(options: Options) -> None:
    if options.resume and options.initial_checkpoint:
        raise OptionError("--resume continues a run, --initial-checkpoint starts one: give only one of them")
    if options.eval and not (options.resume or options.initial_checkpoint):
        raise OptionError("--eval needs weights: give --resume or --initial-checkpoint")
    require_file("initial_checkpoint", options.initial_checkpoint)
    if options.val_path and not options.data_path:
        raise OptionError("--val-path needs --data-path")


def require_file(name: str, path: str | None) -> None:
    """Raises OptionError if the option was given and names no file."""
    if path is not None and not os.path.isfile(path):
        reason = "it is a folder, not a file" if os.path.isdir(path) else "there is no such file"
        raise OptionError(f"{flag(name)} {path}: {reason}")


def _check_schedule(options: Options, world_size: int) -> None:
    if options.warmup_epochs >= options.epochs:
        raise OptionError(f"--warmup-epochs {options.warmup_epochs} must be less than --epochs {options.epochs}")
    peak = peak_lr(options, world_size)
    if options.sched in ("cosine", "poly") and options.min_lr > peak:
        batch = options.batch_size * world_size
        scaling = "" if options.unscale_lr else f" (--lr {options.lr:g} × batch {batch} / 512)"
        raise OptionError(
            f"--min-lr {options.min_lr:g} is above the peak learning rate {peak:g}{scaling}; "
            "lower --min-lr, raise --lr, or take --lr as it is with --unscale-lr"
        )


def peak_lr(options: Options, world_size: int) -> float:
    """The learning rate after the warm-up: DeiT scales --lr with the global batch."""
    return options.lr if options.unscale_lr else options.lr * options.batch_size * world_size / 512


def mixes(options: Options) -> bool:
    """Whether images of a batch are blended (mixup or cutmix)."""
    return options.mixup > 0 or options.cutmix > 0 or options.cutmix_minmax is not None


def uses_policy(options: Options) -> bool:
    """Whether an --aa policy is in force."""
    return options.aa not in ("", "none")


def _check_mixing(options: Options) -> None:
    if options.cutmix_minmax is not None:
        low, high = options.cutmix_minmax
        if not 0 <= low < high <= 1:
            raise OptionError(f"--cutmix-minmax must be two numbers, 0 <= MIN < MAX <= 1, got {low} {high}")
    if mixes(options) and options.batch_size % 2:
        raise OptionError(
            f"--batch-size {options.batch_size} must be even with mixup or cutmix, which blend pairs of images"
        )


def _conditions(options: Options, world_size: int):
    """(name, whether it matters, why not) for every option that only matters together with another."""
    mixing = mixes(options)
    cutmix = options.cutmix > 0 or options.cutmix_minmax is not None
    yield "cutmix", options.cutmix_minmax is None, "together with --cutmix-minmax, which replaces it"
    yield "mixup_prob", mixing, "without --mixup or --cutmix"
    yield "mixup_mode", mixing, "without --mixup or --cutmix"
    yield "mixup_switch_prob", cutmix and options.mixup > 0, "unless both --mixup and --cutmix are on"
    yield "remode", options.reprob > 0, "with --reprob 0"
    yield "recount", options.reprob > 0, "with --reprob 0"
    yield "color_jitter", not uses_policy(options) or options.color_jitter == 0, "with an --aa policy; add --aa none"
    yield "model_ema_decay", options.model_ema, "with --no-model-ema"
    yield "min_lr", options.sched in ("cosine", "poly"), f"with --sched {options.sched}"
    yield "decay_epochs", options.sched == "step", f"with --sched {options.sched}"
    yield "decay_rate", options.sched in ("step", "poly"), f"with --sched {options.sched}"
    yield "warmup_lr", options.warmup_epochs > 0, "with --warmup-epochs 0"
    yield "sync_bn", world_size > 1 or not options.sync_bn, "in one process; start with torchrun"


def _policy_constructor(policy: str):
    if policy.startswith("rand"):
        return rand_augment_transform
    return augment_and_mix_transform if policy.startswith("augmix") else auto_augment_transform
