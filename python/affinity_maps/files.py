# SPDX-License-Identifier: MIT
"""The files of the command line: what is wrong with them is said before any work, and the weights."""

from __future__ import annotations

import os

from torch import nn

from training.checkpoint import load_weights
from training.errors import CheckpointError, OptionError


def check_files(inputs: dict[str, str], outputs: dict[str, str]) -> None:
    """Check the paths, given by the words that the command line has for them.

    Raises:
        OptionError: an input is no file, an output has no folder or is one, or would replace another of the files.
    """
    for name, path in {**inputs, **outputs}.items():
        if os.path.isdir(path):
            raise OptionError(f"{name} {path}: expected a file, this is a folder")
    for name, path in inputs.items():
        if not os.path.isfile(path):
            raise OptionError(f"{name} {path}: there is no such file")
    taken = {os.path.realpath(path): name for name, path in inputs.items()}
    for name, path in outputs.items():
        if not os.path.isdir(folder := os.path.dirname(os.path.abspath(path))):
            raise OptionError(f"{name} {path}: there is no folder {folder}")
        if (other := taken.setdefault(os.path.realpath(path), name)) != name:
            raise OptionError(f"{name} {path} would replace {other}, which is the same file")


def load_unfused(model: nn.Module, path: str, use_ema: bool) -> None:
    """`load_weights` with other advice for a fused network: to fuse `model` first would leave nothing to see.

    Raises:
        CheckpointError: as there.
    """
    try:
        load_weights(model, path, use_ema=use_ema)
    except CheckpointError as error:
        if "weights are of a fused network" not in str(error):
            raise
        raise CheckpointError(
            f"{path}: the weights are of a fused network, which has no affinities left to show: "
            "give those from before fuse()"
        ) from error
