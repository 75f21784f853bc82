# SPDX-License-Identifier: MIT
"""Checks of the options that name a network."""

from __future__ import annotations

import inspect

import timm

import container_kernels  # noqa: F401  registers our models with timm
from training.errors import OptionError

FLAGS_OF_MODEL_KWARGS = {
    "num_classes": "the data", "drop_rate": "--drop", "drop_path_rate": "--drop-path", "img_size": "--input-size",
}  # fmt: skip
# Of timm, not of the model: where weights come from, and other kinds of models.
ARGUMENTS_OF_TIMM = {*inspect.signature(timm.create_model).parameters, "features_only"} - {"kwargs"}


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
