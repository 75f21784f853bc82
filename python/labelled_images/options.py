# SPDX-License-Identifier: MIT
"""Options that say where labelled images are."""

from __future__ import annotations

import dataclasses

from training.options import option


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Where labelled images are."""

    data_path: str | None = option(
        None, "folder or tar of class folders, or of train and val trees of them (default: the checkpoint's, "
        "or handwritten digits)", "data",
    )  # fmt: skip
    val_path: str | None = option(None, "folder or tar of class folders to validate on", "data")
