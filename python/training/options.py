# SPDX-License-Identifier: MIT
"""The command line of `train.py` as one typed dataclass; its fields are the parser.

Names and defaults are those of DeiT's `main.py`, which trained the released network. `option_checks.py` says which
combinations are allowed.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import difflib
import types
import typing
from collections.abc import Callable, Mapping

from training.errors import OptionError

MODEL_ALIASES = {"container_v1_light": "container_light"}
TRUTH_VALUES = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False, "none": None}
DTYPE_ALIASES = {"bf16": "bfloat16", "fp16": "float16", "half": "float16", "fp32": "float32", "float": "float32"}


def option(default, help, group, *, choices=None, nargs=None, metavar=None):
    """A dataclass field that is also a command-line flag."""
    metadata = dict(help=help, group=group, choices=choices, nargs=nargs, metavar=metavar)
    return dataclasses.field(default=default, metadata=metadata)


def positional(help, group):
    """A dataclass field that is a word of the command line by its place, which cannot be left out."""
    return dataclasses.field(metadata=dict(help=help, group=group, positional=True))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Everything a run is told. A field `warmup_epochs` is the flag `--warmup-epochs`."""

    data_path: str | None = option(
        None, "folder or tar with train and val trees of class folders (default: handwritten digits)", "data"
    )
    val_path: str | None = option(None, "folder or tar of class folders to validate on", "data")
    class_order: str = option(
        "text", "number class folders as text (1, 10, 2), as torchvision, or in natural order (1, 2, 10), as timm",
        "data", choices=("text", "natural"),
    )  # fmt: skip
    input_size: int | None = option(None, "height and width of the images (default: the model's)", "data")
    crop_pct: float | None = option(None, "part of the resized image that is evaluated (default: the model's)", "data")
    mean: tuple[float, ...] | None = option(
        None, "mean of the channels, from 0 to 1 (default: the model's)", "data", nargs=3, metavar=("R", "G", "B")
    )
    std: tuple[float, ...] | None = option(
        None, "deviation of the channels (default: the model's)", "data", nargs=3, metavar=("R", "G", "B")
    )
    num_workers: int | None = option(
        None, "processes that load images, per rank (default: one a core, up to 8)", "data"
    )
    limit_batches: int | None = option(None, "use only the first N batches of every epoch and validation", "data")
    train_fraction: float = option(
        1.0, "train on this part of every class; --seed chooses the images, a smaller part is in every larger", "data"
    )
    val_fraction: float = option(1.0, "judge on this part of every class, always the same images", "data")
    epoch_repeats: int = option(1, "passes over the training images that count as one epoch", "data")

    model: str = option("container_light", "any model known to timm", "model")
    model_kwargs: Mapping[str, object] | None = option(
        None, "arguments of the model, Python literals or text, as dynamic=False \"depths=(1, 1, 2, 1)\"", "model",
        nargs="+", metavar="KEY=VALUE",
    )  # fmt: skip
    drop: float = option(0.0, "dropout before the classifier", "model")
    drop_path: float = option(0.1, "stochastic depth, the rate of the last block", "model")
    initial_checkpoint: str | None = option(None, "start from these weights; the classifier may differ", "model")
    model_ema: bool = option(True, "keep and evaluate an exponential moving average of the weights", "model")
    model_ema_decay: float = option(0.99996, "decay of the moving average, per step", "model")

    epochs: int = option(300, "passes over the training images (times --epoch-repeats)", "optimization")
    batch_size: int = option(128, "images per step and process (8 processes make DeiT's 1024)", "optimization")
    opt: str = option("adamw", "any optimizer known to timm", "optimization")
    opt_eps: float | None = option(None, "epsilon of the optimizer", "optimization")
    opt_betas: tuple[float, ...] | None = option(
        None, "betas of the optimizer", "optimization", nargs="+", metavar="BETA"
    )
    momentum: float | None = option(None, "momentum of the optimizer", "optimization")
    weight_decay: float = option(0.05, "weight decay of matrices and filters", "optimization")
    clip_grad: float | None = option(None, "clip the norm of the gradient to this", "optimization")
    lr: float = option(5e-4, "peak learning rate for a global batch of 512, scaled linearly", "optimization")
    unscale_lr: bool = option(False, "take --lr as it is, whatever the batch", "optimization")
    sched: str = option(
        "cosine", "how the learning rate falls", "optimization", choices=("cosine", "step", "poly", "constant")
    )
    min_lr: float = option(1e-5, "where cosine and poly end", "optimization")
    warmup_epochs: int = option(5, "epochs of linear warm-up", "optimization")
    warmup_lr: float = option(1e-6, "where the warm-up starts", "optimization")
    decay_epochs: float = option(30.0, "step: epochs between two decays", "optimization")
    decay_rate: float = option(0.1, "step: factor of a decay; poly: its power", "optimization")

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

    output_dir: str | None = option(None, "where the run is kept (default: a new folder in output/)", "run")
    resume: str | None = option(None, "continue the run of this checkpoint, with its options", "run")
    eval: bool = option(False, "only evaluate the weights of --resume or --initial-checkpoint", "run")
    seed: int = option(0, "the run is a function of this number", "run")
    device: str = option("auto", "cuda, cuda:1, cpu, or auto: a GPU if there is one", "run")
    amp_dtype: str | None = option(
        None, "autocast to bfloat16 or float16, or compute in float32 (default: bfloat16 on a GPU)", "run"
    )
    channels_last: bool = option(True, "channels-last memory layout", "run")
    compile: bool = option(False, "torch.compile the model", "run")
    grad_checkpointing: bool = option(
        False, "compute activations again in the backward pass: slower, in less memory", "run"
    )
    sync_bn: bool = option(False, "batch statistics over all ranks", "run")
    log_seconds: float = option(30.0, "seconds between two lines of progress where there is no terminal", "run")


def flag(field_name: str) -> str:
    """The command-line spelling of a field: warmup_epochs -> --warmup-epochs."""
    return "--" + field_name.replace("_", "-")


def wrap_command_line(values: dict, width: int) -> list[str]:
    """{"lr": 0.1, "model_ema": False} -> ["--lr 0.1 --no-model-ema"]; no line breaks between a flag and its value."""
    lines = [""]
    for name, value in values.items():
        words = f"{flag(name)} {' '.join(map(str, value)) if isinstance(value, tuple) else value}"
        if isinstance(value, bool):
            words = flag(name) if value else flag(f"no_{name}")
        if len(lines[-1]) + len(words) >= width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {words}".strip()
    return lines


def parse_explicit(argv: list[str], description: str, cls: type = Options) -> dict:
    """Only the options that `argv` names, typed, as {field name: value}.

    Options left out are left out here too: what they become depends on the data and on --resume, see
    `option_checks.resolve`.

    Raises:
        OptionError: an unknown option (prefixes do not count), a missing or malformed value.
    """
    words = [field.name.upper() for field in dataclasses.fields(cls) if _is_positional(field)]
    parser = _Parser(
        description=description,
        usage=" ".join(["%(prog)s", *words, "[options]"]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    groups = {}
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        name = field.metadata["group"]
        if name not in groups:
            groups[name] = parser.add_argument_group(name)
        _add_flag(groups[name], field, hints[field.name])
    namespace, unknown = parser.parse_known_args([_normalize(argument) for argument in argv])
    if unknown:
        raise OptionError(f"unknown option {unknown[0]}{_suggest(unknown[0], cls)} (--help lists the options)")
    explicit = vars(namespace)
    if "model" in explicit:
        explicit["model"] = MODEL_ALIASES.get(explicit["model"], explicit["model"])
    if "amp_dtype" in explicit:
        explicit["amp_dtype"] = DTYPE_ALIASES.get(explicit["amp_dtype"], explicit["amp_dtype"])
    return {name: _collect(value, hints[name]) for name, value in explicit.items()}


def _collect(value, hint):
    """Several values of a flag are a tuple, KEY=VALUE pairs a dict."""
    if not isinstance(value, list):
        return value
    if _scalar_type(hint) is not parse_pair:
        return tuple(value)
    keys = [key for key, _ in value]
    for key in keys:
        if keys.count(key) > 1:
            raise OptionError(f"{key}=… is given {keys.count(key)} times: leave one of them")
    return dict(value)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise OptionError(f"{message} (--help lists the options)")


def _suggest(unknown: str, cls: type) -> str:
    flags = [flag(field.name) for field in dataclasses.fields(cls) if not _is_positional(field)]
    similar = difflib.get_close_matches(unknown.partition("=")[0], flags, n=1)
    return f"; did you mean {similar[0]}?" if similar else ""


def _normalize(argument: str) -> str:
    """DeiT spells some flags with underscores (--output_dir); both spellings mean the same."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return name.replace("_", "-") + equals + value


def _is_positional(field: dataclasses.Field) -> bool:
    return field.metadata.get("positional", False)


def _add_flag(group, field: dataclasses.Field, hint) -> None:
    metadata = field.metadata
    if _is_positional(field):
        group.add_argument(field.name, type=_scalar_type(hint), metavar=field.name.upper(), help=metadata["help"])
        return
    help = metadata["help"] if field.default is None else f"{metadata['help']} (default: {field.default})"
    help = help.replace("%", "%%")
    if hint is bool:
        group.add_argument(flag(field.name), action=argparse.BooleanOptionalAction, help=help)
        return
    group.add_argument(
        flag(field.name),
        type=_scalar_type(hint),
        choices=metadata["choices"],
        nargs=metadata["nargs"],
        metavar=metadata["metavar"] or ("{" + ",".join(metadata["choices"]) + "}" if metadata["choices"] else "X"),
        help=help,
    )


def parse_pair(text: str) -> tuple[str, object]:
    """`depths=(1, 2)` -> ("depths", (1, 2)); what is no Python literal is text.

    Raises:
        argparse.ArgumentTypeError: it is not KEY=VALUE, or a truth value that Python spells otherwise: as text, false
            would count as true.
    """
    key, equals, value = text.partition("=")
    if not equals or not key.isidentifier():
        raise argparse.ArgumentTypeError(f"expected KEY=VALUE, got {text!r}")
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        if (word := value.strip().lower()) in TRUTH_VALUES:
            raise argparse.ArgumentTypeError(f"{text}: write {key}={TRUTH_VALUES[word]}") from None
        return key, value


def _scalar_type(hint) -> Callable:
    """str, int or float inside `X | None` and `tuple[X, ...]`, `parse_pair` for a mapping."""
    if typing.get_origin(hint) is Mapping:
        return parse_pair
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) in (typing.Union, tuple):
        return _scalar_type(next(arg for arg in typing.get_args(hint) if arg not in (type(None), Ellipsis)))
    return hint
