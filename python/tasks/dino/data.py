# SPDX-License-Identifier: MIT
"""Images in views: the dataset and its loader, and a part of the training images held out."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy
import torch
from PIL import Image

from labelled_images.sources import Source
from training.batches import Key, make_loader
from training.distributed import World
from training.errors import DataError
from training.loading import Loader
from training.randomness import derive_seed, seed_host


class ViewsDataset(torch.utils.data.Dataset):
    """The views of the images of a source; a key is (index, counters), which the seed is derived from.

    An unreadable image is returned as its DataError, so that it reaches the training loop without the noise of a
    worker's traceback and the loop can save before it stops.
    """

    def __init__(self, source: Source, transform: Callable[[Image.Image], list[torch.Tensor]]):
        self.source, self.transform = source, transform

    def __getitem__(self, key: Key) -> list[torch.Tensor] | DataError:
        index, counters = key
        try:
            image = self.source.read(index)
        except DataError as error:
            return error
        seed_host(derive_seed(*counters))
        return self.transform(image)

    def __len__(self) -> int:
        return len(self.source.labels)


def collate(samples: list) -> list[torch.Tensor] | DataError:
    """Views of a batch, each (B, 3, size, size); with an unreadable image its DataError."""
    for sample in samples:
        if isinstance(sample, DataError):
            return sample
    return [torch.stack(view) for view in zip(*samples, strict=True)]


def views_loader(
    source: Source, transform: Callable, batches: Iterable[list[Key]], num_workers: int | None, world: World
) -> Loader:
    """A loader of lists of views (uint8) or DataError, which follows `batches`."""
    return make_loader(ViewsDataset(source, transform), batches, collate, num_workers, world)


class PartOfSource:
    """The images `indices` of a source, as a source."""

    def __init__(self, source: Source, indices: list[int], part: str):
        self.source, self.indices = source, indices
        self.name, self.classes, self.in_memory = f"{source.name} ({part})", source.classes, source.in_memory
        self.remarks = source.remarks
        self.labels = [source.labels[index] for index in indices]

    def read(self, index: int) -> Image.Image:
        """See `Source.read`."""
        return self.source.read(self.indices[index])

    def identify(self, index: int) -> tuple[str, int]:
        """See `Source.identify`."""
        return self.source.identify(self.indices[index])


def hold_out(source: Source, part: float) -> tuple[PartOfSource, PartOfSource]:
    """The rest of a source, and `part` of the images of every class, always the same ones.

    Raises:
        DataError: a class has too few images for both.
    """
    labels = numpy.asarray(source.labels)
    held = []
    for label, name in enumerate(source.classes):
        of_class = numpy.flatnonzero(labels == label)
        count = round(part * len(of_class))
        if not 0 < count < len(of_class):
            raise DataError(f"--holdout {part}: class {name} of {source.name} has {len(of_class)} images, too few")
        held += numpy.random.default_rng(label).permutation(of_class)[:count].tolist()
    rest = sorted(set(range(len(labels))) - set(held))
    return PartOfSource(source, rest, "the rest"), PartOfSource(source, sorted(held), "held out")
