# SPDX-License-Identifier: MIT
"""comparison.json: what a comparison is, and every finished run; what a stopped one is continued from."""

from __future__ import annotations

import dataclasses
import json
import os
import platform

import timm
import torch

import container_kernels
from comparison.plan import Trial
from comparison.results import summarize
from training.checkpoint import atomic_write
from training.errors import CheckpointError, OptionError
from training.options import flag

FORMAT = "container_kernels.comparison/2"
# Everything else may change from one part of a comparison to the next: more networks and seeds, other machines.
FIXED = ("fractions", "repeats", "val_fraction", "batch_size", "lr", "amp_dtype")


@dataclasses.dataclass
class Record:
    """The content of comparison.json.

    `runs` are {contender, fraction, seed, conditions, history}: the number of the conditions it finished under, history
    as in summary.csv. `diverged` are {contender, fraction, seed, epoch}, without an accuracy to show.
    """

    path: str
    settings: dict = dataclasses.field(default_factory=dict)
    epochs: int | None = None
    data: dict = dataclasses.field(default_factory=dict)
    recipe: dict = dataclasses.field(default_factory=dict)
    conditions: list[dict] = dataclasses.field(default_factory=list)
    contenders: dict[str, dict] = dataclasses.field(default_factory=dict)
    images: dict[str, int] = dataclasses.field(default_factory=dict)
    runs: list[dict] = dataclasses.field(default_factory=list)
    diverged: list[dict] = dataclasses.field(default_factory=list)
    results: list[dict] = dataclasses.field(default_factory=list)

    def find(self, trial: Trial) -> dict | None:
        """The finished run of `trial`."""
        return _find(self.runs, trial)

    def is_settled(self, trial: Trial) -> bool:
        """Whether `trial` is finished or has diverged, as it would again."""
        return _find(self.runs + self.diverged, trial) is not None

    def complete(self, explicit: dict) -> dict:
        """The explicit settings, and of the others those that a comparison that has begun cannot change.

        Raises:
            OptionError: an explicit one would change it.
        """
        if not self.settings:
            return explicit
        fixed = {name: self.settings[name] for name in FIXED}
        given = as_json(explicit)
        for name, value in {**fixed, **({"epochs": self.epochs} if self.epochs else {})}.items():
            if given.get(name, value) != value:
                raise OptionError(
                    f"{flag(name)} {_words(given[name])} contradicts the comparison in {self._folder}, "
                    f"which has {_words(value)}; leave it as it was, or choose another --output-dir"
                )
        return {**{name: tuple(v) if isinstance(v, list) else v for name, v in fixed.items()}, **explicit}

    def unchanged(self, what: str, before: dict | None, now: dict) -> dict:
        """`now` as JSON has it. Raises OptionError, naming `what`, if the comparison has begun with something else."""
        now = as_json(now)
        different = [name for name in now if before and before.get(name) != now[name]]
        if different:
            raise OptionError(
                f"{what} ({', '.join(different)}) would not be what the comparison in {self._folder} has begun with; "
                "choose another --output-dir"
            )
        return now

    def number_of(self, conditions: dict) -> int:
        """The place of `conditions` in the list of all, where they are added if they are new."""
        if conditions not in self.conditions:
            self.conditions.append(conditions)
        return self.conditions.index(conditions)

    @property
    def _folder(self) -> str:
        return os.path.dirname(self.path)

    def save(self) -> None:
        """Write the file. Raises CheckpointError if that is not possible."""
        content = {"format": FORMAT, **dataclasses.asdict(self)}
        del content["path"]
        with atomic_write(self.path) as file:
            file.write(json.dumps(content, indent=1).encode())


def open_record(folder: str) -> Record:
    """The record in `folder`, or a new one.

    Raises:
        CheckpointError: comparison.json cannot be read.
    """
    path = os.path.join(folder, "comparison.json")
    if not os.path.exists(path):
        return Record(path)
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
        if content.pop("format", None) != FORMAT:
            raise ValueError(f"expected format {FORMAT}")
        record = Record(path, **content)
        record.results = summarize(record.runs)
        if missing := [name for name in FIXED if name not in record.settings]:
            raise ValueError(f"settings lack {', '.join(missing)}")
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        raise CheckpointError(f"{path} cannot be read as a comparison: {reason}") from error
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


def _find(runs: list[dict], trial: Trial) -> dict | None:
    wanted = dataclasses.asdict(trial)
    return next((run for run in runs if all(run[name] == value for name, value in wanted.items())), None)


def as_json(value):
    """As it comes back from the file: tuples become lists."""
    return json.loads(json.dumps(value))


def _words(value) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
