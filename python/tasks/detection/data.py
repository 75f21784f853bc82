# SPDX-License-Identifier: MIT
"""From sources to batches: datasets, the order of training images, loaders."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

import torch

from tasks.detection.annotations import Source
from tasks.detection.transforms import Sample
from training.batches import Key, TrainingBatches, make_loader
from training.distributed import World
from training.errors import DataError
from training.loading import Loader
from training.randomness import derive_seed, seed_host
from training.shared_options import TrainingOptions


@dataclasses.dataclass(frozen=True)
class Batch:
    """Images (uint8, of different sizes), their targets, and their indices in the source."""

    images: list[torch.Tensor]
    targets: list[dict[str, torch.Tensor]]
    indices: list[int]

    def pin_memory(self) -> Batch:
        """In memory that a GPU copies from without waiting; PyTorch's loader calls it."""
        targets = [{name: value.pin_memory() for name, value in target.items()} for target in self.targets]
        return Batch([image.pin_memory() for image in self.images], targets, self.indices)

    def to(self, device: torch.device) -> tuple[list[torch.Tensor], list[dict[str, torch.Tensor]]]:
        """Images and targets on `device`."""
        images = [image.to(device, non_blocking=True) for image in self.images]
        targets = [{name: value.to(device, non_blocking=True) for name, value in t.items()} for t in self.targets]
        return images, targets


class DetectionDataset(torch.utils.data.Dataset):
    """Transformed samples of a source; a key is (index, counters), None where the transform is not random.

    An unreadable image is returned as its DataError, so that it reaches the training loop without the noise of a
    worker's traceback and the loop can save before it stops.
    """

    def __init__(self, source: Source, transform: Callable[..., Sample]):
        self.source, self.transform = source, transform

    def __getitem__(self, key: Key) -> tuple[Sample, int] | DataError:
        index, counters = key
        try:
            image, objects = self.source.read(index)
        except DataError as error:
            return error
        if counters is not None:
            seed_host(derive_seed(*counters))
        return self.transform(image, objects), index

    def __len__(self) -> int:
        return len(self.source)


def collate(samples: list) -> Batch | DataError:
    """A batch; with an unreadable image its DataError."""
    for sample in samples:
        if isinstance(sample, DataError):
            return sample
    images = [image for (image, _), _ in samples]
    return Batch(images, [target for (_, target), _ in samples], [index for _, index in samples])


class GroupedBatches(TrainingBatches):
    """Batches of images that are all wide or all high, so that padding wastes little; the last ones of an epoch mix
    what is left over. As many batches as without groups, and as much a function of seed and epoch.
    """

    def __init__(self, source: Source, options: TrainingOptions, world: World):
        super().__init__(len(source), source.name, options, world)
        self._is_wide = [width > height for height, width in map(source.size, range(len(source)))]

    def __iter__(self):
        self.sampler.set_epoch(derive_seed(self.seed, self.epoch))
        batches = grouped(list(self.sampler), self._is_wide, self.batch_size)
        for batch in batches[self.first : self.per_epoch]:
            yield [(index, (self.seed, self.epoch, self.rank, place)) for place, index in batch]


def grouped(indices: list[int], is_wide: list[bool], batch_size: int) -> list[list[tuple[int, int]]]:
    """`indices` with their places, in full batches of one group each, in the order in which these fill up."""
    waiting: dict[bool, list[tuple[int, int]]] = {False: [], True: []}
    batches = []
    for place, index in enumerate(indices):
        group = waiting[is_wide[index]]
        group.append((place, index))
        if len(group) == batch_size:
            batches.append(list(group))
            group.clear()
    rest = sorted(waiting[False] + waiting[True])
    return batches + [rest[i : i + batch_size] for i in range(0, len(rest) - batch_size + 1, batch_size)]


def detection_loader(
    source: Source, transform: Callable, batches: Iterable[list[Key]], num_workers: int | None, world: World
) -> Loader:
    """A loader of `Batch` or DataError, which follows `batches`."""
    return make_loader(DetectionDataset(source, transform), batches, collate, num_workers, world)
