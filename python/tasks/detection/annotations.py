# SPDX-License-Identifier: MIT
"""Images with objects: what every source of them gives."""

from __future__ import annotations

import dataclasses
from typing import Protocol

import numpy
from PIL import Image


@dataclasses.dataclass(frozen=True)
class Category:
    """One kind of objects; `id` is the number that files know it by."""

    id: int
    name: str


@dataclasses.dataclass(frozen=True)
class Objects:
    """The objects of one image, in its pixels.

    boxes: (N, 4) float32, x1, y1, x2, y2; 0 is the left edge of the first pixel.
    labels: (N,) int64, indices of `Source.categories`.
    masks: (N, H, W) bool, or None where the source has none.
    area: (N,) float32, pixels of the object as the source says (the mask's, not the box's, where it has one).
    crowd: (N,) bool, regions with many objects that are not told apart: never trained on, ignored in evaluation.
    """

    boxes: numpy.ndarray
    labels: numpy.ndarray
    masks: numpy.ndarray | None
    area: numpy.ndarray
    crowd: numpy.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    @classmethod
    def none(cls) -> Objects:
        """Of an image that nothing is known of."""
        number = numpy.zeros(0, dtype=numpy.float32)
        return cls(number.reshape(0, 4), number.astype(numpy.int64), None, number, number.astype(bool))

    def select(self, chosen: numpy.ndarray) -> Objects:
        """Those of a mask (N,) or of indices."""
        masks = None if self.masks is None else self.masks[chosen]
        return Objects(self.boxes[chosen], self.labels[chosen], masks, self.area[chosen], self.crowd[chosen])


class Source(Protocol):
    """Images with objects, readable in any order by any process."""

    name: str
    categories: list[Category]
    remarks: list[str]  # what was passed over or put right
    has_masks: bool

    def __len__(self) -> int: ...

    def image_id(self, index: int) -> int:
        """The number that files know image `index` by."""

    def image_name(self, index: int) -> str:
        """What messages call image `index`."""

    def size(self, index: int) -> tuple[int, int]:
        """Height and width of image `index` as it is read."""

    def objects(self, index: int) -> Objects:
        """The objects alone of image `index`."""

    def read(self, index: int) -> tuple[Image.Image, Objects]:
        """Image `index` as RGB, and its objects. Raises DataError, naming the file, if it cannot be read."""
