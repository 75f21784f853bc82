# SPDX-License-Identifier: MIT
"""Puts a run together from its options: data and network."""

from __future__ import annotations

import timm
import torch
from timm.data import resolve_data_config
from torch import nn
from training.checkpoint import load_weights
from training.compute import ImageFormat, make_compute
from training.distributed import World
from training.errors import OptionError
from training.interrupt import StopGuard
from training.randomness import seed_everything
from training.run import Run, make_run

import container_kernels  # noqa: F401  registers our models with timm
from tasks.classification.decoded_cache import keep_decoded
from tasks.classification.options import Options
from tasks.classification.sources import Source
from tasks.classification.subset import repeat_images, select_images
from tasks.classification.task import Classification


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
    model.to(device=compute.device, memory_format=compute.memory_format)
    image_format = make_image_format(model, options.input_size, options.crop_pct, options.mean, options.std)
    task = Classification(options, model, train, val, image_format, compute, world)
    return make_run(task, options, world, compute, guard, output_dir)


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
