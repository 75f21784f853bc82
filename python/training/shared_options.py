# SPDX-License-Identifier: MIT
"""Options that several programs have in common, in small dataclasses to inherit.

A program lists what it inherits in reverse order of its --help; a field that it writes again keeps its place.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

from training.options import option


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Which network."""

    model: str | None = option(None, "any model known to timm (default: the checkpoint's)", "model")
    model_kwargs: Mapping[str, object] | None = option(
        None, "arguments of the model, Python literals or text, as dynamic=False \"depths=(1, 1, 2, 1)\" "
        "(default: the checkpoint's)", "model", nargs="+", metavar="KEY=VALUE",
    )  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageOptions:
    """What the network is given."""

    input_size: int | None = option(
        None, "height and width of the images (default: as trained, or the model's)", "data"
    )
    crop_pct: float | None = option(
        None, "part of the resized image that is evaluated (default: as trained, or the model's)", "data"
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoaderOptions:
    """How images are loaded."""

    batch_size: int = option(128, "images per batch and process", "data")
    num_workers: int | None = option(
        None, "processes that load images, per rank (default: one per core, up to 8)", "data"
    )
    limit_batches: int | None = option(None, "use only the first N batches of every epoch and validation", "data")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeviceOptions:
    """Where it is computed."""

    device: str = option("auto", "cuda, cuda:1, cpu, or auto: a GPU if there is one", "compute")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComputeOptions(DeviceOptions):
    """How it is computed."""

    amp_dtype: str | None = option(
        None, "autocast to bfloat16 or float16, or compute in float32 (default: bfloat16 on a GPU)", "compute"
    )
    channels_last: bool = option(True, "channels-last memory layout", "compute")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopOptions(ComputeOptions):
    """What every program that trains is told of its machine."""

    compile: bool = option(False, "torch.compile the model", "compute")
    log_seconds: float = option(30.0, "seconds between two lines of progress where there is no terminal", "compute")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingOptions(LoopOptions, LoaderOptions, ModelOptions):
    """All that the engine is told; a task adds its own. Names and defaults are those of DeiT's `main.py`.

    `LR_BATCH`, of a task, is the global batch that --lr is for.
    The network is the task's to build: with `model`, `model_kwargs`, `initial_checkpoint` and `grad_checkpointing`.
    """

    LR_BATCH: ClassVar[int] = 512

    initial_checkpoint: str | None = option(None, "start from these weights; the output layer may differ", "model")
    checkpoint_key: str = option(
        "teacher", "which network of a self-supervised checkpoint to start from", "model",
        choices=("teacher", "student"),
    )  # fmt: skip
    model_ema: bool = option(True, "keep and evaluate an exponential moving average of the weights", "model")
    model_ema_decay: float = option(0.99996, "decay of the moving average, per step", "model")
    grad_checkpointing: bool = option(
        False, "compute activations again in the backward pass: slower, in less memory", "model"
    )
    sync_bn: bool = option(False, "batch statistics over all ranks", "model")

    epochs: int = option(300, "passes over the training images", "optimization")
    accumulate_steps: int = option(
        1, "batches per step of the optimizer: their gradients are averaged, as of one larger batch", "optimization"
    )
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
        "cosine", "how the learning rate falls", "optimization",
        choices=("cosine", "step", "multistep", "poly", "constant"),
    )  # fmt: skip
    min_lr: float = option(1e-5, "where cosine and poly end", "optimization")
    warmup_epochs: int = option(5, "epochs of linear warm-up", "optimization")
    warmup_steps: int | None = option(
        None, "steps of the optimizer of linear warm-up, in place of epochs", "optimization"
    )
    warmup_lr: float = option(1e-6, "where the warm-up starts", "optimization")
    warmup_prefix: bool = option(
        False, "begin the schedule after the warm-up, in place of under it; --epochs stay as many", "optimization"
    )
    decay_epochs: float = option(30.0, "step: epochs between two decays", "optimization")
    decay_milestones: tuple[int, ...] | None = option(
        None, "multistep: epochs after which the learning rate decays", "optimization", nargs="+", metavar="EPOCH"
    )
    decay_rate: float = option(0.1, "step, multistep: factor of a decay; poly: its power", "optimization")

    eval_every: int = option(1, "epochs from one evaluation to the next; the last epoch is always evaluated", "run")
    output_dir: str | None = option(None, "where the run is kept (default: a new folder in output/)", "run")
    resume: str | None = option(None, "continue the run of this checkpoint, with its options", "run")
    seed: int = option(0, "the run is a function of this number", "run")
