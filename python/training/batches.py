# SPDX-License-Identifier: MIT
"""Batches of a rank: keys of images, a function of seed and epoch; and their loader."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable

from timm.data.distributed_sampler import RepeatAugSampler
from torch.utils.data import Dataset, DistributedSampler

from training.distributed import World
from training.errors import DataError
from training.loading import Loader
from training.randomness import derive_seed
from training.shared_options import TrainingOptions

Key = tuple[int, tuple[int, ...] | None]
"""Index of an image, and the counters that its seed is derived from; None where nothing is random."""


class TrainingBatches:
    """The keys of the training batches of one rank, a function of (seed, epoch); may start at any batch.

    `images` is their number, `name` what messages call them; with `repeated` every drawn image comes three times, on
    different ranks.
    """

    def __init__(self, images: int, name: str, options: TrainingOptions, world: World, repeated: bool = False):
        self.batch_size, self.seed, self.rank = options.batch_size, options.seed, world.rank
        if repeated:
            self.sampler = RepeatAugSampler(range(images), num_replicas=world.size, rank=world.rank)
        else:
            self.sampler = DistributedSampler(range(images), num_replicas=world.size, rank=world.rank, drop_last=True)
        self.per_epoch = len(self.sampler) // options.batch_size
        if options.limit_batches is not None:
            self.per_epoch = min(self.per_epoch, options.limit_batches)
        if self.per_epoch == 0:
            raise DataError(
                f"--batch-size {options.batch_size} is more than an epoch's {len(self.sampler)} images"
                f"{' per rank' if world.size > 1 else ''} ({images} in {name})"
            )
        self.go_to(epoch=0, batch=0)

    def go_to(self, epoch: int, batch: int) -> None:
        """The next iteration starts here."""
        self.epoch, self.first = epoch, batch

    def __iter__(self):
        self.sampler.set_epoch(derive_seed(self.seed, self.epoch))
        indices = list(self.sampler)
        for batch in range(self.first, self.per_epoch):
            positions = range(batch * self.batch_size, (batch + 1) * self.batch_size)
            yield [(indices[i], (self.seed, self.epoch, self.rank, i)) for i in positions]

    def __len__(self) -> int:
        return self.per_epoch - self.first


class EvaluationBatches:
    """Every image once over all ranks, none twice; ranks may differ by one batch.

    `images` is how many all ranks see together, `longest_rank` the most batches a rank has.
    """

    def __init__(self, images: int, batch_size: int, world: World, limit_batches: int | None = None):
        self.images = images
        if limit_batches is not None:
            self.images = min(images, limit_batches * batch_size * world.size)
        # images may be sorted, by class for example: fewer of them are taken from the whole range
        indices = [i * images // self.images for i in range(world.rank, self.images, world.size)]
        starts = range(0, len(indices), batch_size)
        self.batches = [[(index, None) for index in indices[start : start + batch_size]] for start in starts]
        self.longest_rank = -(-self.images // (batch_size * world.size))

    def __iter__(self):
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


def make_loader(
    dataset: Dataset, batches: Iterable[list[Key]], collate: Callable, num_workers: int | None, world: World
) -> Loader:
    """A loader of what `collate` makes of samples; `num_workers` None takes this rank's share of the cores."""
    if num_workers is None:
        num_workers = min(8, len(os.sched_getaffinity(0)) // world.ranks_here)
    return Loader(
        dataset,
        batch_sampler=batches,
        collate_fn=collate,
        num_workers=num_workers,
        pin_memory=world.device.type == "cuda",
        persistent_workers=num_workers > 0,
        worker_init_fn=_leave_signals_to_main,
    )


def _leave_signals_to_main(worker_id: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
