# SPDX-License-Identifier: MIT
"""timm's networks by name, ours among them, and what they expect of an image."""

from __future__ import annotations

import timm
import torch
from timm.data import resolve_data_config
from torch import nn

import container_kernels  # noqa: F401  registers our models with timm
from training.compute import ImageFormat
from training.errors import OptionError


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
