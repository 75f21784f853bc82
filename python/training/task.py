# SPDX-License-Identifier: MIT
"""Interface of a task: all that the engine knows of it."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, BinaryIO, Protocol

import torch
from timm.utils import dispatch_clip_grad
from torch import nn

from training.errors import CheckpointError
from training.interrupt import StopGuard
from training.progress import Progress


class Batches(Protocol):
    """The order of the training batches of one rank: a function of seed and epoch, which may start at any batch."""

    per_epoch: int  # batches, the same number on every rank
    batch_size: int  # images in every one of them: all are of one size

    def go_to(self, epoch: int, batch: int) -> None:
        """The next iteration of the loader starts here."""


@dataclasses.dataclass(frozen=True)
class Losses:
    """The losses of one batch, scalars (float) on the device: `total` is minimized, `parts` are reported by name.

    All are means over the images of the batch, so that batches, ranks and epochs average them.
    """

    total: torch.Tensor
    parts: Mapping[str, torch.Tensor] = dataclasses.field(default_factory=dict)


class Task(abc.ABC):
    """Data, network and losses of one kind of training.

    Attributes:
        name: of the task, kept in checkpoints.
        part_names: of the losses that are reported beside the total, in the order of the report.
        metric_names: of what `evaluate` measures, in the order of the report.
        model: the network that is trained, on its device.
        batches: the order that `loader` follows.
        loader: training batches of any kind; one that cannot be read is its DataError.
        training_images: how many different images there are to train on.
    """

    name: str
    part_names: tuple[str, ...] = ()
    metric_names: tuple[str, ...]
    model: nn.Module
    batches: Batches
    loader: Iterable
    training_images: int

    def parameter_groups(self) -> list[dict] | None:
        """Groups of the optimizer, each with `params` and what it has of its own: `weight_decay`, `lr_scale`; None for
        all parameters alike, without weight decay for biases, norms and scalars."""
        return None

    def start_update(self, optimizer: torch.optim.Optimizer, update: int, updates: int) -> None:  # noqa: B027
        """Called before the batches of step `update` (from 0) of the `updates` of the run: whatever follows a schedule
        is set here, as a function of `update` alone, so that a resumed run goes on alike."""

    def compiled(self, network: nn.Module) -> nn.Module:
        """`network`, which is `model` or a replica of it, as --compile has it called."""
        return torch.compile(network)

    @abc.abstractmethod
    def step(self, network: nn.Module, batch: Any) -> Losses:
        """The losses of one training batch; `network` is `model`, possibly replicated or compiled."""

    def adjust_gradients(self, clip_grad: float | None) -> None:
        """Called when the gradient of a step is complete; clips its norm to `clip_grad`, which is --clip-grad."""
        if clip_grad is not None:
            dispatch_clip_grad(self.model.parameters(), clip_grad)

    def finish_update(self) -> None:  # noqa: B027
        """Called after each step of the optimizer."""

    @abc.abstractmethod
    def evaluate(self, network: nn.Module, guard: StopGuard, progress: Progress) -> dict[str, float]:
        """The measurements of `metric_names`, over all ranks: every validation image once (see `training.evaluation`).

        Raises:
            Interrupted, DataError: on every rank.
        """

    @abc.abstractmethod
    def score(self, metrics: Mapping[str, float]) -> float:
        """The number that "best" goes by: the higher, the better."""

    @abc.abstractmethod
    def describe_data(self) -> str:
        """The data, in one line."""

    def describe_recipe(self) -> list[str]:
        """Lines that a new run begins with, if the user has to know more than the report says."""
        return []

    def describe_epoch(self, row: Mapping[str, Any], best: float) -> str:
        """The measurements of an evaluated epoch in its line of the log; `row` is that of the report, `best` the best
        score."""
        metrics = "   ".join(f"val {name} {row[f'val_{name}']:.4f}" for name in self.metric_names)
        return f"{metrics}   best score {best:.4f}"

    def warn_of(self, row: Mapping[str, Any]) -> str | None:
        """What is wrong with an evaluated epoch, and what to do about it, in the line after its own; None: nothing."""
        return None

    def describe_result(self, row: Mapping[str, Any], best: float, epoch: int) -> str:
        """The result of a run: its last `row`, the best score and the epoch of that."""
        return f"best score {best:.4f} in epoch {epoch}"

    @abc.abstractmethod
    def draw_curves(self, file: BinaryIO, history: list[dict]) -> None:
        """Write a PNG of the rows of the report."""

    def describe_weights(self) -> dict[str, Any]:
        """Facts of the weights for every checkpoint beside the options: plain values, under names of the task's own."""
        return {}

    def check_weights(self, content: Mapping[str, Any]) -> None:
        """Raises CheckpointError unless the checkpoint `content` says of its weights what this task does."""
        for name, value in self.describe_weights().items():
            if content.get(name) != value:
                raise CheckpointError(f"--resume: {name} of the checkpoint: expected {value}, got {content.get(name)}")

    def state_dict(self) -> dict[str, Any]:
        """State that changes while training beside the model, as tensors and plain values; {} if nothing does.

        The main rank's is saved, and every rank continues with it.
        """
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Bring the task to a state of `state_dict`. Raises ValueError or KeyError for one of another task."""
        if state:
            raise ValueError(f"state: expected none, got {', '.join(state)}")
