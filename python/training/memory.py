# SPDX-License-Identifier: MIT
"""Small data sets stay decoded in memory: a CIFAR image is decoded once and not once an epoch."""

from __future__ import annotations

import numpy
from PIL import Image

from training.errors import DataError
from training.sources import Source

LIMIT = 256 * 2**20
"""Bytes of pixels: CIFAR's 50,000 training images have 147 MiB. Decoding this much takes seconds."""
SAMPLE = 16


class MemorySource:
    """All images of another source, decoded now. Workers that are forked later share them.

    An image that cannot be read stays with the source, whose error then comes with its batch.
    """

    in_memory = True

    def __init__(self, source: Source):
        self.source = source
        self.name, self.classes, self.labels = source.name, source.classes, source.labels
        self._pixels = [_decode(source, index) for index in range(len(source.labels))]

    def read(self, index: int) -> Image.Image:
        """See `Source.read`."""
        pixels = self._pixels[index]
        return self.source.read(index) if pixels is None else Image.fromarray(pixels)


def keep_decoded(source: Source, limit: int = LIMIT) -> Source:
    """`source`, in memory if its pixels fit `limit` bytes, judged by a few images."""
    if source.in_memory:
        return source
    count = len(source.labels)
    sample = [_decode(source, i * count // SAMPLE) for i in range(min(SAMPLE, count))]
    sizes = [pixels.nbytes for pixels in sample if pixels is not None]
    fits = sizes and sum(sizes) / len(sizes) * count <= limit
    return MemorySource(source) if fits else source


def _decode(source: Source, index: int) -> numpy.ndarray | None:
    try:
        return numpy.asarray(source.read(index))
    except DataError:
        return None
