# SPDX-License-Identifier: MIT
"""Ranks, devices and the few collectives training needs; one process alone is a world of size 1."""

from __future__ import annotations

import dataclasses
import os

import torch
import torch.distributed as dist

from training.errors import OptionError


@dataclasses.dataclass(frozen=True)
class World:
    """This process among those that train together."""

    rank: int
    size: int
    device: torch.device
    control: dist.ProcessGroup | None  # CPU tensors: agreeing on a stop must not wait for the GPU

    @property
    def is_main(self) -> bool:
        """Whether this process prints and writes."""
        return self.rank == 0

    @property
    def ranks_here(self) -> int:
        """How many processes share this machine."""
        return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))

    def agree(self, code: int) -> int:
        """The largest `code` of all ranks: a decision every rank takes at the same step."""
        if self.control is None:
            return code
        codes = torch.tensor([code])
        dist.all_reduce(codes, dist.ReduceOp.MAX, group=self.control)
        return int(codes)

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """The sum of `values` over the ranks, as float64 on the CPU."""
        values = values.to("cpu", torch.float64)
        if self.control is not None:
            dist.all_reduce(values, group=self.control)
        return values

    def add_up(self, values: torch.Tensor) -> torch.Tensor:
        """The sum of `values`, on their device and in their dtype, over the ranks; in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def gather(self, value: object) -> list:
        """What every rank has, a value that can be pickled each, in the order of ranks and on all of them."""
        if self.control is None:
            return [value]
        values = [None] * self.size
        dist.all_gather_object(values, value, group=self.control)
        return values

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.control is not None:
            dist.barrier(group=self.control)


def launched_size() -> int:
    """How many processes torchrun started (1 without it)."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def join_world(device: str) -> World:
    """Join the processes that torchrun started, if it did, and pick this one's device.

    Raises:
        OptionError: a numbered GPU with several processes, or fewer GPUs than processes.
    """
    size, local_rank = launched_size(), int(os.environ.get("LOCAL_RANK", "0"))
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    chosen = torch.device(device)
    if size > 1 and chosen.type == "cuda":
        if chosen.index is not None:
            raise OptionError(f"--device {device} puts every process on one GPU; with torchrun give --device cuda")
        if local_rank >= torch.cuda.device_count():
            raise OptionError(
                f"--nproc-per-node: process {local_rank} needs a GPU of its own, there are {torch.cuda.device_count()}"
            )
        chosen = torch.device("cuda", local_rank)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
        torch.backends.cudnn.benchmark = True  # all training batches have one shape
    if size == 1:
        return World(rank=0, size=1, device=chosen, control=None)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    control = dist.new_group(backend="gloo")
    return World(rank=dist.get_rank(), size=dist.get_world_size(), device=chosen, control=control)


def leave_world() -> None:
    """Undo `join_world`."""
    if dist.is_initialized():
        dist.destroy_process_group()
