# SPDX-License-Identifier: MIT
"""Checkpoints: written atomically, read without executing pickled code.

`last.pth` is the whole state of a run, `best.pth` only the weights that scored best; both keep them under `model`.
"""

from __future__ import annotations

import contextlib
import os
from typing import Any

import torch
from torch import nn

from container_kernels.models import Network
from container_kernels.models.checkpoint import checkpoint_filter_fn
from container_kernels.models.checkpoint_file import (
    CheckpointFileError,
    find_branch,
    read_checkpoint_file,
    state_dict_of,
)
from training.errors import CheckpointError

FORMAT = "container_kernels.training/1"


@contextlib.contextmanager
def atomic_write(path: str):
    """A binary file that replaces `path` when the block ends, and vanishes if the block fails.

    A crash or a full disk at any moment leaves either the old file or the new one.

    Raises:
        CheckpointError: the file cannot be written.
    """
    folder, name = os.path.split(os.path.abspath(path))
    temporary = os.path.join(folder, f".{name}.{os.getpid()}.part")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(folder)
    except OSError as error:
        raise CheckpointError(f"cannot write {path}: {error}") from error
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)


def _sync_folder(folder: str) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def save_checkpoint(path: str, content: dict[str, Any]) -> None:
    """Write `content` (tensors and plain Python values) to `path` atomically."""
    with atomic_write(path) as file:
        try:
            torch.save({"format": FORMAT, **content}, file)
        except RuntimeError as error:  # torch's zip writer reports a full disk this way
            raise CheckpointError(f"cannot write {path}: {error}") from error


def read_checkpoint(path: str) -> dict[str, Any]:
    """The content of a checkpoint of this trainer.

    Raises:
        CheckpointError: the file is missing, damaged, or not ours.
    """
    content = _read(path)
    if not _is_ours(content):
        raise CheckpointError(f"{path} is not a checkpoint of this trainer (expected format {FORMAT})")
    return content


def read_run(path: str, task: str) -> dict[str, Any]:
    """`read_checkpoint` for a file that a run of `task` can be continued from.

    Raises:
        CheckpointError: as there, or the file holds weights only, or the run is of another task.
    """
    content = read_checkpoint(path)
    trained = content.get("task", task)  # older checkpoints do not say
    if trained != task:
        raise CheckpointError(f"{path} is of a run of {trained}, this program trains {task}")
    if "optimizer" not in content:
        raise CheckpointError(f"{path} holds weights only; continue a run from its last.pth")
    return content


def peek_checkpoint(path: str) -> dict[str, Any]:
    """The content of a checkpoint of this trainer, or {} for any other file of weights.

    Raises:
        CheckpointError: the file is missing or damaged, or would execute code when read.
    """
    content = _read(path)
    return content if _is_ours(content) else {}


def has_branches(path: str) -> bool:
    """Whether a file of weights is one of self-supervised training, with a teacher and a student.

    Raises:
        CheckpointError: as `peek_checkpoint`.
    """
    return find_branch(_read(path), "teacher") is not None


def _is_ours(content: Any) -> bool:
    return isinstance(content, dict) and content.get("format") == FORMAT


def _read(path: str) -> Any:
    try:
        return read_checkpoint_file(path)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: there is no such file") from error
    except (OSError, CheckpointFileError) as error:
        raise CheckpointError(f"{path} cannot be read as a checkpoint: {error}") from error


def load_weights(
    model: nn.Module, path: str, *, use_ema: bool = False, new_classes: bool = False, branch: str = "teacher"
) -> None:
    """Load the weights of a checkpoint of this trainer, of a released one, or of a bare state dict into `model`.

    Args:
        model: the module to fill.
        path: the file, `torch.save` or safetensors.
        use_ema: take the moving average, which `last.pth` keeps beside the weights.
        new_classes: leave the classifier as it is where its shape differs, or where there is none (fine-tuning); of a
            model without one, leave that of the file out.
        branch: "teacher" or "student", of a file that has both.

    Raises:
        CheckpointError: the file cannot be read, has no moving average, or belongs to another model.
    """
    content = _read(path)
    if _is_ours(content) and use_ema and content.get("model_ema") is None:
        raise CheckpointError(f"{path} keeps no moving average of the weights")
    try:
        weights = state_dict_of(content, use_ema=use_ema, branch=branch)
        if isinstance(model, Network):
            weights = checkpoint_filter_fn(weights, model)
        if new_classes:
            weights = _keep_classifier(model, weights)
        model.load_state_dict(weights)
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} does not fit {type(model).__name__}: {error}") from error


def _keep_classifier(model: nn.Module, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    classifier = model.pretrained_cfg.get("classifier") or ()
    names = (classifier,) if isinstance(classifier, str) else classifier
    own = model.state_dict()
    keys = [f"{name}.{part}" for name in names for part in ("weight", "bias")]
    kept = {name: tensor for name, tensor in weights.items() if name in own or name not in keys}
    replaced = {key: own[key] for key in keys if key in own and (key not in kept or kept[key].shape != own[key].shape)}
    return {**kept, **replaced}
