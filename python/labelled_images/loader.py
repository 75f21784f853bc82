# SPDX-License-Identifier: MIT
"""From a source to batches: the dataset and its loader.

Workers deliver uint8 images, four times less to move than float32; `Compute.normalize` finishes the work on the device.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from labelled_images.sources import Source
from training.batches import Key, make_loader
from training.distributed import World
from training.errors import DataError
from training.loading import Loader
from training.randomness import derive_seed, seed_host


class ImageDataset(torch.utils.data.Dataset):
    """Transformed images of a source; a key is (index, counters), None where the transform is not random.

    The seed is mixed from the counters here, in a worker: for small images that takes as long as transforming them.

    An unreadable image is returned as its DataError, so that it reaches the training loop without the noise of a
    worker's traceback and the loop can save before it stops.
    """

    def __init__(self, source: Source, transform):
        self.source, self.transform = source, transform

    def __getitem__(self, key: tuple[int, tuple[int, ...] | None]):
        index, counters = key
        try:
            image = self.source.read(index)
        except DataError as error:
            return error
        if counters is not None:
            seed_host(derive_seed(*counters))
        return self.transform(image), self.source.labels[index]

    def __len__(self) -> int:
        return len(self.source.labels)


def collate(samples: list):
    """Stack (image, label) samples; a batch with an unreadable image is its DataError."""
    for sample in samples:
        if isinstance(sample, DataError):
            return sample
    images, labels = zip(*samples, strict=True)
    return torch.stack(images), torch.tensor(labels)


def image_loader(
    source: Source, transform, batches: Iterable[list[Key]], num_workers: int | None, world: World
) -> Loader:
    """A loader of (uint8 images (B, 3, H, W), labels (B,)) or DataError, which follows `batches`."""
    return make_loader(ImageDataset(source, transform), batches, collate, num_workers, world)
