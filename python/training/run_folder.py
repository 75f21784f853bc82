# SPDX-License-Identifier: MIT
"""Folder of a run; never writes over another one."""

from __future__ import annotations

import os
import time

from training.errors import OptionError
from training.shared_options import TrainingOptions


def choose_folder(options: TrainingOptions) -> str:
    """--output-dir, or the folder of the resumed run, or a new one in output/.

    Raises:
        OptionError: the folder holds another run, or its name is taken by a file.
    """
    resumed = os.path.dirname(os.path.abspath(options.resume)) if options.resume else None
    if options.output_dir is None:
        return resumed or os.path.join("output", f"{time.strftime('%Y%m%d-%H%M%S')}-{options.model}")
    if os.path.exists(options.output_dir) and not os.path.isdir(options.output_dir):
        raise OptionError(f"--output-dir {options.output_dir} is not a folder")
    last = os.path.join(options.output_dir, "last.pth")
    if os.path.exists(last) and os.path.abspath(options.output_dir) != resumed:
        raise OptionError(
            f"--output-dir {options.output_dir} already holds a run: continue it with --resume {last}, "
            "or choose another folder"
        )
    return options.output_dir


def make_folder(folder: str) -> None:
    """Create it. Raises OptionError if that is not possible."""
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise OptionError(f"--output-dir {folder} cannot be created: {error}") from error
