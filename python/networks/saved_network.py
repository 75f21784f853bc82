# SPDX-License-Identifier: MIT
"""The network of a file of weights: files of `train.py` describe it whole, others do not."""

from __future__ import annotations

import dataclasses

from torch import nn

from networks.build import build_model, make_image_format
from networks.option_checks import check_model_kwargs, check_model_name
from training.checkpoint import peek_checkpoint
from training.compute import ImageFormat
from training.errors import OptionError
from training.option_checks import require_file


@dataclasses.dataclass(frozen=True)
class SavedNetwork:
    """A file of weights and the network they belong to."""

    path: str
    name: str
    model_kwargs: dict | None
    options: dict  # of its training; {} where it was another program's
    classes: list[str] | None

    @property
    def input_size(self) -> int | None:
        """Height and width of the images it was trained on; None where the file does not say."""
        return self.options.get("input_size") or self.options.get("global_crops_size")

    def build(self, num_classes: int | None, input_size: int | None) -> nn.Module:
        """The network with fresh weights; the arguments replace what the file says, but not its classes.

        Raises:
            OptionError: the model refuses one of them.
        """
        classes = num_classes if self.classes is None else len(self.classes)
        return build_model(self.name, classes, input_size or self.input_size, self.model_kwargs)

    def image_format(self, model: nn.Module, input_size: int | None, crop_pct: float | None) -> ImageFormat:
        """What the network expects of an image; the arguments replace what the file says.

        Raises:
            OptionError: the model cannot take images of `input_size`.
        """
        saved = self.options
        return make_image_format(
            model, input_size or self.input_size, crop_pct or saved.get("crop_pct"), saved.get("mean"),
            saved.get("std"),
        )  # fmt: skip


def find_network(checkpoint: str, model: str | None, model_kwargs: dict | None = None) -> SavedNetwork:
    """The network of the file `checkpoint`: timm's `model` with `model_kwargs`, or as the file says.

    Raises:
        OptionError: there is no such file, or the model is not known.
        CheckpointError: the file cannot be read.
    """
    require_file("checkpoint", checkpoint)
    content = peek_checkpoint(checkpoint)
    options = content.get("options", {})
    name = model or options.get("model")
    if name is None:
        raise OptionError(f"--model is needed: {checkpoint} does not say which model it belongs to")
    check_model_name(name)
    check_model_kwargs(model_kwargs)
    if model_kwargs is None and name == options.get("model"):
        model_kwargs = options.get("model_kwargs")
    return SavedNetwork(checkpoint, name, model_kwargs, options, content.get("classes"))
