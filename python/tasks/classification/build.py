# SPDX-License-Identifier: MIT
"""Puts a run together from its options: data, model, optimizer, schedule, moving average."""

from __future__ import annotations

import dataclasses
import os

import timm
import timm.loss
import timm.optim
import torch
from timm.data import resolve_data_config
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from training.checkpoint import load_weights
from training.compute import Compute, ImageFormat, make_compute
from training.distributed import World
from training.errors import OptionError
from training.interrupt import StopGuard
from training.options import Options
from training.randomness import seed_everything

import container_kernels  # noqa: F401  registers our models with timm
from tasks.classification import data
from tasks.classification.decoded_cache import keep_decoded
from tasks.classification.metrics import Evaluation, make_evaluation
from tasks.classification.option_checks import mixes, peak_lr
from tasks.classification.sources import Source
from tasks.classification.subset import repeat_images, select_images


@dataclasses.dataclass
class Position:
    """How far a run is: `step` steps of `epoch` are done; the sums are those of the epoch so far, over all ranks."""

    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    images: int = 0
    seconds: float = 0.0


@dataclasses.dataclass
class Run:
    """Everything the training loop works with."""

    options: Options
    world: World
    compute: Compute
    guard: StopGuard
    classes: list[str]
    training_images: int
    data_name: str
    image_format: ImageFormat
    batches: data.TrainingBatches
    loader: DataLoader
    augment: data.Augmenter
    evaluation: Evaluation
    model: nn.Module
    network: nn.Module  # the model as training calls it: replicated, compiled
    inference: nn.Module  # the model as evaluation calls it: compiled, no collectives
    ema: ModelEmaV3 | None
    criterion: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: Scheduler
    scaler: torch.amp.GradScaler
    output_dir: str
    position: Position = dataclasses.field(default_factory=Position)
    history: list[dict] = dataclasses.field(default_factory=list)


def build_run(options: Options, world: World, guard: StopGuard, sources: tuple[Source, Source], output_dir: str) -> Run:
    """Assemble a run at its beginning.

    Raises:
        OptionError: the model or the optimizer refuses an option.
        DataError: there are fewer images than a batch needs.
        CheckpointError: --initial-checkpoint does not fit the model.
    """
    train, val = map(keep_decoded, select_images(sources, options))
    train = repeat_images(train, options.epoch_repeats)
    compute = make_compute(world.device, options.amp_dtype, options.channels_last)
    seed_everything(options.seed)
    model = build_model(
        options.model, len(train.classes), options.input_size, options.model_kwargs,
        drop_rate=options.drop, drop_path_rate=options.drop_path,
    )  # fmt: skip
    if options.initial_checkpoint:
        load_weights(model, options.initial_checkpoint, new_classes=True)
    if options.grad_checkpointing:
        checkpoint_gradients(model)
    if options.sync_bn:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    model.to(device=compute.device, memory_format=compute.memory_format)
    ema = ModelEmaV3(model, decay=options.model_ema_decay) if options.model_ema else None
    inference = torch.compile(model) if options.compile else model
    network = inference
    if world.size > 1:
        network = DistributedDataParallel(model)
        network = torch.compile(network) if options.compile else network

    image_format = make_image_format(model, options.input_size, options.crop_pct, options.mean, options.std)
    batches = data.TrainingBatches(train, options, world)
    optimizer = build_optimizer(options, model, world.size)
    scheduler, _ = create_scheduler_v2(
        optimizer, options.sched, num_epochs=options.epochs, warmup_epochs=options.warmup_epochs,
        warmup_lr=options.warmup_lr, min_lr=options.min_lr, decay_epochs=options.decay_epochs,
        decay_rate=options.decay_rate, step_on_epochs=False, updates_per_epoch=batches.steps,
    )  # fmt: skip
    return Run(
        options=options,
        world=world,
        compute=compute,
        guard=guard,
        classes=train.classes,
        training_images=len(train.labels) // options.epoch_repeats,
        data_name=os.path.basename(os.path.abspath(options.data_path)) if options.data_path else "handwritten digits",
        image_format=image_format,
        batches=batches,
        loader=data.make_loader(
            train, data.training_transform(options, image_format), batches, options.num_workers, world
        ),
        augment=data.Augmenter(options, len(train.classes), compute.device),
        evaluation=make_evaluation(
            val, image_format, compute, world, options.batch_size, options.num_workers, options.limit_batches
        ),
        model=model,
        network=network,
        inference=inference,
        ema=ema,
        criterion=make_criterion(options),
        optimizer=optimizer,
        scheduler=scheduler,
        scaler=torch.amp.GradScaler(compute.device.type, enabled=compute.dtype == torch.float16),
        output_dir=output_dir,
    )


def build_model(
    name: str, num_classes: int, input_size: int | None, model_kwargs: dict | None = None, **rates: float
) -> nn.Module:
    """timm's model `name` for `num_classes`; rates that are 0 are left out, since not every model knows them all.

    A checkpoint of this trainer has the arguments in its options: `model`, `input_size`, `model_kwargs`.

    Raises:
        OptionError: the model refuses one of them.
    """
    arguments = {key: rate for key, rate in rates.items() if rate > 0}
    if input_size is not None and _takes_img_size(name):
        arguments["img_size"] = input_size
    given = model_kwargs or {}
    try:
        return timm.create_model(name, num_classes=num_classes, **{**arguments, **given})
    except (TypeError, ValueError, AssertionError, LookupError, AttributeError, RuntimeError, ArithmeticError) as error:
        settings = [f"{key}={value}" for key, value in arguments.items() if key not in given]
        settings += ["--model-kwargs", *(f"{key}={value}" for key, value in given.items())] if given else []
        raise OptionError(f"--model {name} cannot be built with {' '.join(settings)}: {error}") from error


def _takes_img_size(name: str) -> bool:
    """Ours all do, since a dense affinity belongs to one size; of timm's, those that say so."""
    ours = timm.models.model_entrypoint(name).__module__.startswith("container_kernels.")
    return ours or timm.get_pretrained_cfg(name, allow_unregistered=True).fixed_input_size


def checkpoint_gradients(model: nn.Module) -> None:
    """Let `model` compute activations again in the backward pass.

    Raises:
        OptionError: it does not know how.
    """
    try:
        model.set_grad_checkpointing()
    except (AttributeError, AssertionError) as error:
        name = model.pretrained_cfg["architecture"]
        raise OptionError(f"--grad-checkpointing: {name} cannot compute its activations again: {error}") from error


def make_image_format(
    model: nn.Module,
    input_size: int | None = None,
    crop_pct: float | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
) -> ImageFormat:
    """The model's own input format, with what is given in place of it.

    Raises:
        OptionError: the model cannot take images of `input_size`.
    """
    config = resolve_data_config(model=model)
    if input_size is not None:
        _try_input_size(model, input_size)
    return ImageFormat(
        size=input_size or config["input_size"][-1],
        crop_pct=crop_pct or config["crop_pct"],
        interpolation=config["interpolation"],
        mean=tuple(mean or config["mean"]),
        std=tuple(std or config["std"]),
    )


@torch.inference_mode()
def _try_input_size(model: nn.Module, size: int) -> None:
    image = torch.zeros(1, 3, size, size, device=next(model.parameters()).device)
    try:
        model.eval()(image)
    except (RuntimeError, ValueError, AssertionError) as error:
        name = model.pretrained_cfg["architecture"]
        raise OptionError(f"--input-size {size}: {name} cannot take {size}×{size} images: {error}") from error


def build_optimizer(options: Options, model: nn.Module, world_size: int) -> torch.optim.Optimizer:
    """timm's optimizer, without weight decay for biases, norms and scalars."""
    given = dict(eps=options.opt_eps, betas=options.opt_betas)
    if options.momentum is not None:
        given["momentum"] = options.momentum
    return timm.optim.create_optimizer_v2(
        model, options.opt, lr=peak_lr(options, world_size), weight_decay=options.weight_decay,
        **{name: value for name, value in given.items() if value is not None},
    )  # fmt: skip


def make_criterion(options: Options) -> nn.Module:
    """Cross entropy; mixing brings (smoothed) label distributions of its own."""
    if mixes(options):
        return timm.loss.SoftTargetCrossEntropy()
    if options.smoothing > 0:
        return timm.loss.LabelSmoothingCrossEntropy(options.smoothing)
    return nn.CrossEntropyLoss()
