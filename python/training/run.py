# SPDX-License-Identifier: MIT
"""A run: a task, and what the engine trains it with."""

from __future__ import annotations

import contextlib
import dataclasses

import torch
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from training.compute import Compute
from training.distributed import World
from training.errors import OptionError
from training.interrupt import StopGuard
from training.optimization import build_optimizer, build_scheduler
from training.shared_options import TrainingOptions
from training.task import Task


@dataclasses.dataclass
class Position:
    """How far a run is: `step` steps of `epoch` are done; the sums are those of the epoch so far, over all ranks.

    A step is one of the optimizer. `parts` are sums like `loss_sum`, by the names of the task's losses.
    """

    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    images: int = 0
    seconds: float = 0.0
    parts: dict[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Run:
    """Everything the training loop works with."""

    options: TrainingOptions
    world: World
    compute: Compute
    guard: StopGuard
    task: Task
    model: nn.Module
    network: nn.Module  # the model as training calls it: replicated, compiled
    inference: nn.Module  # the model as evaluation calls it: compiled, no collectives
    ema: ModelEmaV3 | None
    optimizer: torch.optim.Optimizer
    scheduler: Scheduler
    scaler: torch.amp.GradScaler
    steps: int  # of the optimizer per epoch; the last may have fewer batches than the others
    output_dir: str
    position: Position = dataclasses.field(default_factory=Position)
    history: list[dict] = dataclasses.field(default_factory=list)

    def batches_of(self, step: int) -> range:
        """The numbers of the batches whose gradients make `step` of an epoch."""
        size, end = self.options.accumulate_steps, self.task.batches.per_epoch
        return range(min(step * size, end), min((step + 1) * size, end))

    def images_from(self, step: int) -> int:
        """Images of an epoch from `step` on, over all ranks."""
        batches = self.task.batches
        return (batches.per_epoch - self.batches_of(step).start) * batches.batch_size * self.world.size

    def without_reduction(self) -> contextlib.AbstractContextManager:
        """The context of a batch whose gradients stay on this rank until those of another batch are added."""
        return self.network.no_sync() if self.world.size > 1 else contextlib.nullcontext()


def make_run(
    task: Task, options: TrainingOptions, world: World, compute: Compute, guard: StopGuard, output_dir: str
) -> Run:
    """A run at its beginning: replicas, moving average, optimizer and schedule for the model of `task`.

    Raises:
        OptionError: the optimizer refuses an option, or more batches are to be accumulated than an epoch has.
    """
    if options.accumulate_steps > task.batches.per_epoch:
        raise OptionError(
            f"--accumulate-steps {options.accumulate_steps} is more than an epoch's {task.batches.per_epoch} batches"
        )
    model = nn.SyncBatchNorm.convert_sync_batchnorm(task.model) if options.sync_bn else task.model
    ema = ModelEmaV3(model, decay=options.model_ema_decay) if options.model_ema else None
    inference = task.compiled(model) if options.compile else model
    network = inference
    if world.size > 1:
        network = DistributedDataParallel(model)
        network = task.compiled(network) if options.compile else network
    optimizer = build_optimizer(options, model, world.size, task.parameter_groups())
    steps = -(-task.batches.per_epoch // options.accumulate_steps)
    return Run(
        options=options,
        world=world,
        compute=compute,
        guard=guard,
        task=task,
        model=model,
        network=network,
        inference=inference,
        ema=ema,
        optimizer=optimizer,
        scheduler=build_scheduler(options, optimizer, steps),
        scaler=torch.amp.GradScaler(compute.device.type, enabled=compute.dtype == torch.float16),
        steps=steps,
        output_dir=output_dir,
    )
