# SPDX-License-Identifier: MIT
"""comparison.json: what a comparison is, and every finished run; what a stopped one is continued from."""

from __future__ import annotations

import dataclasses
import json
import os
import platform

import timm
import torch
from training.checkpoint import atomic_write
from training.errors import CheckpointError, OptionError
from training.options import flag

import container_kernels
from comparison.plan import Trial
from comparison.settings import Settings

FORMAT = "container_kernels.comparison/1"
# Everything else may change from one part of a comparison to the next: more networks and seeds, other machines.
FIXED = ("fractions", "repeats", "val_fraction", "batch_size", "lr", "amp_dtype")


@dataclasses.dataclass
class Record:
    """The content of comparison.json. `runs` are {contender, fraction, seed, history}, history as in summary.csv."""

    path: str
    settings: dict
    epochs: int | None = None
    conditions: dict = dataclasses.field(default_factory=dict)
    contenders: dict[str, dict] = dataclasses.field(default_factory=dict)
    images: dict[str, int] = dataclasses.field(default_factory=dict)
    runs: list[dict] = dataclasses.field(default_factory=list)
    results: list[dict] = dataclasses.field(default_factory=list)

    def find(self, trial: Trial) -> dict | None:
        """The finished run of `trial`."""
        wanted = dataclasses.asdict(trial)
        return next((run for run in self.runs if all(run[name] == value for name, value in wanted.items())), None)

    def save(self) -> None:
        """Write the file. Raises CheckpointError if that is not possible."""
        content = {"format": FORMAT, **dataclasses.asdict(self)}
        del content["path"]
        with atomic_write(self.path) as file:
            file.write(json.dumps(content, indent=1).encode())


def open_record(settings: Settings) -> Record:
    """The record in --output-dir, or a new one.

    Raises:
        OptionError: the folder holds a comparison with another recipe.
        CheckpointError: comparison.json cannot be read.
    """
    path = os.path.join(settings.output_dir, "comparison.json")
    given = json.loads(json.dumps(dataclasses.asdict(settings)))  # tuples become lists, as they come back
    if not os.path.exists(path):
        return Record(path, given)
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
        if content.pop("format") != FORMAT:
            raise ValueError(f"expected format {FORMAT}")
        record = Record(path, **content)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} cannot be read as a comparison: {error}") from error
    before = {**record.settings, "epochs": record.epochs}
    for name in (*FIXED, *(["epochs"] if settings.epochs and record.epochs else [])):
        if before[name] != given[name]:
            raise OptionError(
                f"{flag(name)} {_words(given[name])} contradicts the comparison in {settings.output_dir}, "
                f"which has {_words(before[name])}; leave it as it was, or choose another --output-dir"
            )
    record.settings = given
    return record


def describe_conditions(device: torch.device) -> dict[str, str | int]:
    """What numbers depend on beside the settings."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {
        "device": name,
        "threads": torch.get_num_threads(),
        "container_kernels": container_kernels.__version__,
        "torch": torch.__version__,
        "timm": timm.__version__,
        "python": platform.python_version(),
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _words(value) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
