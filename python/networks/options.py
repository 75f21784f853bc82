# SPDX-License-Identifier: MIT
"""Options of programs that look at a trained network."""

from __future__ import annotations

import dataclasses

from training.options import option
from training.shared_options import ModelOptions


@dataclasses.dataclass(frozen=True, kw_only=True)
class SavedBackboneOptions(ModelOptions):
    """Which network a file of weights belongs to; what is left out is taken from the file."""

    use_ema: bool = option(False, "take the moving average of the weights that last.pth keeps", "model")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SavedNetworkOptions(SavedBackboneOptions):
    """The same, with its classifier."""

    num_classes: int | None = option(None, "classes of the model (default: the checkpoint's, or the model's)", "model")
