# SPDX-License-Identifier: MIT
"""Optimizer and learning rate, from the options."""

from __future__ import annotations

import timm.optim
import torch
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from torch import nn

from training.shared_options import TrainingOptions


def global_batch(options: TrainingOptions, world_size: int) -> int:
    """Images per step of the optimizer, over all ranks."""
    return options.batch_size * options.accumulate_steps * world_size


def peak_lr(options: TrainingOptions, world_size: int) -> float:
    """The learning rate after the warm-up: --lr in proportion to the global batch."""
    return options.lr if options.unscale_lr else options.lr * global_batch(options, world_size) / options.LR_BATCH


def ends_at_min_lr(options: TrainingOptions) -> bool:
    """Whether --min-lr says where the schedule ends."""
    return options.sched in ("cosine", "poly")


def has_warmup(options: TrainingOptions) -> bool:
    """Whether the learning rate begins at --warmup-lr."""
    return bool(options.warmup_epochs if options.warmup_steps is None else options.warmup_steps)


def build_optimizer(
    options: TrainingOptions, model: nn.Module, world_size: int, groups: list[dict] | None = None
) -> torch.optim.Optimizer:
    """timm's optimizer for the parameter `groups`; None: all of `model`, without weight decay for biases, norms and
    scalars. A group's `lr_scale` is the part of the learning rate that it has.
    """
    given = dict(eps=options.opt_eps, betas=options.opt_betas)
    if options.momentum is not None:
        given["momentum"] = options.momentum
    return timm.optim.create_optimizer_v2(
        groups or model, options.opt, lr=peak_lr(options, world_size), weight_decay=options.weight_decay,
        **{name: value for name, value in given.items() if value is not None},
    )  # fmt: skip


def build_scheduler(options: TrainingOptions, optimizer: torch.optim.Optimizer, steps: int) -> Scheduler:
    """The schedule of the learning rate, for epochs of `steps` steps of the optimizer."""
    # timm's multistep decays when the next step is at a milestone, ours after the last step of its epoch.
    milestones = tuple(milestone + 0.5 / steps for milestone in options.decay_milestones or ())
    warmup = options.warmup_epochs if options.warmup_steps is None else options.warmup_steps / steps
    scheduler, _ = create_scheduler_v2(
        optimizer, options.sched, num_epochs=options.epochs - warmup if options.warmup_prefix else options.epochs,
        warmup_epochs=warmup, warmup_lr=options.warmup_lr, warmup_prefix=options.warmup_prefix,
        min_lr=options.min_lr, decay_epochs=options.decay_epochs, decay_milestones=milestones,
        decay_rate=options.decay_rate, step_on_epochs=False, updates_per_epoch=steps,
    )  # fmt: skip
    return scheduler
