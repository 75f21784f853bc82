# SPDX-License-Identifier: MIT
"""Small data sets stay decoded in memory: a CIFAR image is decoded once and not once an epoch."""

from __future__ import annotations

import numpy
from PIL import Image

from labelled_images.sources import Source
from training.errors import DataError

LIMIT = 256 * 2**20
"""Bytes of pixels: CIFAR's 50,000 training images have 147 MiB. Decoding this much takes seconds."""
SAMPLE = 16


class MemorySource:
    """All images of another source, decoded: `pixels`, uint8 (H, W, 3). Workers that are forked later share them.

    An image that could not be read, None, stays with the source, whose error then comes with its batch.
    """

    in_memory = True

    def __init__(self, source: Source, pixels: list[numpy.ndarray | None]):
        self.source, self._pixels = source, pixels
        self.name, self.classes, self.labels = source.name, source.classes, source.labels

    def read(self, index: int) -> Image.Image:
        """See `Source.read`."""
        pixels = self._pixels[index]
        return self.source.read(index) if pixels is None else Image.fromarray(pixels)

    def identify(self, index: int) -> tuple[str, int]:
        """See `Source.identify`."""
        return self.source.identify(index)


def keep_decoded(source: Source, limit: int = LIMIT) -> Source:
    """`source`, in memory if its pixels fit `limit` bytes; a few images tell when they clearly do not."""
    if source.in_memory:
        return source
    count = len(source.labels)
    samples = min(SAMPLE, count)
    sizes = [_size(_decode(source, i * count // samples)) for i in range(samples)]
    if not any(sizes) or sum(sizes) / samples * count > limit:
        return source
    decoded, total = [], 0
    for index in range(count):
        decoded.append(_decode(source, index))
        total += _size(decoded[-1])
        if total > limit:
            return source
    return MemorySource(source, decoded)


def _size(pixels: numpy.ndarray | None) -> int:
    return 0 if pixels is None else pixels.nbytes


def _decode(source: Source, index: int) -> numpy.ndarray | None:
    try:
        return numpy.asarray(source.read(index))
    except DataError:
        return None
