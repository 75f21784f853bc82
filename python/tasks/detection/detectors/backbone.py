# SPDX-License-Identifier: MIT
"""Backbones: any network of timm that gives features of the strides a detector asks for, and classifiers' weights."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import timm
import torch
from timm.layers import Format
from timm.utils.model import freeze_batch_norm_2d
from torch import Tensor, nn

import container_kernels  # noqa: F401  registers our models with timm
from container_kernels.models.checkpoint_file import CheckpointFileError, read_checkpoint_file, state_dict_of
from container_kernels.models.key_mapping import translated
from training.errors import CheckpointError, OptionError

OWN = "container_kernels."


class Features(nn.Module):
    """Images (B, 3, H, W) to one feature map (B, C, H / stride, W / stride) a stride.

    channels, strides: of the maps. `body` is timm's network.
    """

    def __init__(self, body: nn.Module):
        super().__init__()
        self.body = body
        self.channels: list[int] = body.feature_info.channels()
        self.strides: list[int] = body.feature_info.reduction()
        self._channels_last = getattr(body, "output_fmt", None) == Format.NHWC

    def forward(self, images: Tensor) -> list[Tensor]:
        features = self.body(images)
        return [x.permute(0, 3, 1, 2) for x in features] if self._channels_last else features


def make_features(
    name: str, strides: tuple[int, ...], model_kwargs: Mapping[str, Any] | None = None, drop_path: float = 0.0
) -> Features:
    """The features of `strides` of timm's model `name`; layers that only others need are left out.

    Raises:
        OptionError: there is no such model, it refuses an argument, or does not serve.
    """
    arguments = ({"drop_path_rate": drop_path} if drop_path > 0 else {}) | dict(model_kwargs or {})
    try:
        indices = _indices(name, strides, arguments)
        return Features(timm.create_model(name, features_only=True, out_indices=indices, **arguments))
    except _BUILD_ERRORS as error:
        given = ", ".join(f"{key}={value}" for key, value in arguments.items())
        raise OptionError(
            f"--model {name} cannot be built as a backbone{f' with {given}' * bool(given)}: {error}"
        ) from error


# Whatever a constructor says to an argument that it does not know or want.
_BUILD_ERRORS = (TypeError, ValueError, AssertionError, LookupError, AttributeError, RuntimeError, ArithmeticError)


def why_not(name: str, strides: tuple[int, ...], model_kwargs: Mapping[str, Any] | None = None) -> str | None:
    """None if timm's model `name` serves as a backbone with features of `strides`, or the reason."""
    try:
        _indices(name, strides, dict(model_kwargs or {}))
    except _BUILD_ERRORS as error:
        return str(error)
    return None


def list_backbones(strides: tuple[int, ...]) -> dict[str, str | None]:
    """Our registered networks, and why those that do not serve do not."""
    own = [name for name in timm.list_models() if timm.models.model_entrypoint(name).__module__.startswith(OWN)]
    return {name: why_not(name, strides) for name in own}


def describe_backbones(strides: tuple[int, ...]) -> str:
    """`list_backbones` as lines."""
    found = list_backbones(strides)
    width = max(map(len, found))
    lines = [
        f"  {name:{width}}  {'serves' if why is None else f'does not serve: {why}'}" for name, why in found.items()
    ]
    wanted = ", ".join(map(str, strides))
    return "\n".join([f"Backbones with features of stride {wanted} (beside timm's own, by name):", *lines])


def _indices(name: str, strides: tuple[int, ...], arguments: dict[str, Any]) -> tuple[int, ...]:
    """Which of the model's features have `strides`.

    Raises:
        ValueError: none has one of them, or the model takes images of one size alone.
    """
    without_weights = {key: value for key, value in arguments.items() if key != "pretrained"}
    with torch.device("meta"):  # nothing is allocated, drawn or computed
        body = timm.create_model(name, features_only=True, **without_weights).eval()
    offered = dict(zip(body.feature_info.reduction(), body.feature_info.out_indices, strict=True))
    for height, width in ((256, 320), (320, 192)):
        try:
            body(torch.empty(1, 3, height, width, device="meta"))
        except NotImplementedError:  # an operation that has to see numbers says nothing about sizes
            pass
        except (AssertionError, RuntimeError, ValueError) as error:
            raise ValueError(f"it takes images of one size alone ({str(error).partition(chr(10))[0]})") from error
    missing = [stride for stride in strides if stride not in offered]
    if missing:
        has = ", ".join(map(str, offered))
        raise ValueError(f"it has no features of stride {', '.join(map(str, missing))}, only of {has}")
    return tuple(offered[stride] for stride in strides)


def body_of(detector: nn.Module) -> nn.Module:
    """timm's network inside of a detector."""
    return next(module.body for module in detector.modules() if isinstance(module, Features))


def freeze_norms(detector: nn.Module) -> int:
    """Make the batch norms of the backbone constant, affine too; returns how many there were.

    For a backbone that starts from weights: statistics of two images are noise. Not for one that starts from nothing,
    where frozen norms would not normalize. Load the weights before.
    """
    body = body_of(detector)
    count = sum(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in body.modules())
    freeze_batch_norm_2d(body)
    return count


@dataclasses.dataclass(frozen=True)
class LoadedWeights:
    """used: names in the backbone that were filled; left: names in the file that the backbone has no place for."""

    used: list[str]
    left: list[str]

    def describe(self) -> str:
        """One line."""
        parts = sorted({name.partition(".")[0] for name in self.left})
        left = f"; left out {len(self.left)} of {', '.join(parts)}" if self.left else ""
        return f"{len(self.used)} weights of the backbone loaded{left}"


def load_classifier(detector: nn.Module, path: str, use_ema: bool = False, branch: str = "teacher") -> LoadedWeights:
    """Fill the backbone with the weights of a classifier: a checkpoint of the trainer, a release, or a state dict; of
    self-supervised training with those of `branch`, "teacher" or "student".

    Raises:
        CheckpointError: the file cannot be read, leaves a weight of the backbone as it was, or is of a deeper network.
    """
    try:
        weights = translated(state_dict_of(read_checkpoint_file(path), use_ema=use_ema, branch=branch))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: there is no such file") from error
    except (OSError, CheckpointFileError) as error:
        raise CheckpointError(f"{path} cannot be read as a checkpoint: {error}") from error
    body = body_of(detector)
    own = body.state_dict()
    found, left = {}, []
    for name, tensor in weights.items():
        place = next((place for place in _places(name) if place in own), None)
        if place is None:
            left.append(name)
        else:
            found[place] = tensor
    # Frozen norms count no batches, and old files have not counted any.
    missing = [name for name in own if name not in found and not name.endswith("num_batches_tracked")]
    if missing:
        raise CheckpointError(
            f"{path} does not fit the backbone: it lacks {len(missing)} of {len(own)} weights, first {missing[0]}; "
            f"it has {', '.join(list(weights)[:3])}"
        )
    stages = [stage["module"] for stage in body.feature_info.info[: max(body.feature_info.out_indices) + 1]]
    inside = [name for name in left if any(name.startswith(f"{stage}.") for stage in stages)]
    if inside:
        raise CheckpointError(
            f"{path} does not fit the backbone: it has {len(inside)} weights more in stages of it, first {inside[0]}"
        )
    # Before anything is loaded, which stops in the middle otherwise.
    other = [name for name, tensor in found.items() if tensor.shape != own[name].shape]
    if other:
        shapes = [tuple(weights[other[0]].shape) for weights in (own, found)]
        raise CheckpointError(
            f"{path} does not fit the backbone: {len(other)} of {len(own)} weights have another shape, first "
            f"{other[0]}: expected {shapes[0]}, got {shapes[1]}"
        )
    body.load_state_dict(found, strict=False)
    return LoadedWeights(list(found), left)


def _places(name: str) -> list[str]:
    """What timm's feature networks may call the classifier's weight `name`."""
    return [name, re.sub(r"^(\w+)\.(\d+)\.", r"\1_\2.", name), f"model.{name}"]
