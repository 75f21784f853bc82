# SPDX-License-Identifier: MIT
"""Scenes of handwritten digits: scikit-learn's, enlarged, coloured and scattered over canvases with clutter.

Every scene is a function of (seed, part, index): workers, resumed runs and machines make the same ones, bit by bit.
For that, random numbers are uniform ones of a generator that does not change between versions of NumPy, and pixels
come from elementwise arithmetic alone. No digit is seen in both parts.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy
from PIL import Image

from tasks.detection.annotations import Category, Objects

INK = 0.45  # of a digit's pixels, from 0 to 1: from here on they are its mask
MIN_CONTRAST = 0.25  # of luminance, between a digit and what lies under it
MAX_OVERLAP = 0.15  # of the smaller of two boxes
TRIES = 20  # to find a digit a place, or a colour
MIN_VISIBLE = 0.5  # of a digit's mask; what is covered more is taken for clutter, and has no box
LUMINANCE = numpy.array([0.299, 0.587, 0.114])


@dataclasses.dataclass(frozen=True)
class SceneStyle:
    """Canvas of `size` × `size` pixels with `fewest` to `most` digits that are `smallest` to `largest` pixels wide."""

    size: int = 128
    fewest: int = 3
    most: int = 9
    smallest: int = 20
    largest: int = 48


SMALL_DIGITS = SceneStyle()
LARGE_DIGITS = SceneStyle(fewest=1, most=3, smallest=40, largest=72)


class Scenes:
    """`count` scenes; the training and the validation part take their digits from different people's."""

    has_masks = True

    def __init__(self, count: int, train: bool, seed: int = 0, style: SceneStyle = SMALL_DIGITS):
        self.count, self.train, self.seed, self.style = count, train, seed, style
        self.name = f"scenes of handwritten digits ({'training' if train else 'held-out'} part)"
        self.categories = [Category(digit, str(digit)) for digit in range(10)]
        self.remarks: list[str] = []

    def __len__(self) -> int:
        return self.count

    def image_id(self, index: int) -> int:
        """See `Source.image_id`."""
        return index

    def image_name(self, index: int) -> str:
        """See `Source.image_name`."""
        return f"scene {index}"

    def size(self, index: int) -> tuple[int, int]:
        """See `Source.size`."""
        return self.style.size, self.style.size

    def objects(self, index: int) -> Objects:
        """See `Source.objects`."""
        return self.read(index)[1]

    def read(self, index: int) -> tuple[Image.Image, Objects]:
        """See `Source.read`."""
        canvas = _Canvas(self.style, numpy.random.PCG64(numpy.random.SeedSequence((self.seed, self.train, index))))
        glyphs, labels = digits(self.train)
        for _ in range(canvas.integer(1, 4)):
            canvas.add_clutter(glyphs)
        for _ in range(canvas.integer(self.style.fewest, self.style.most)):
            digit = canvas.integer(0, len(labels) - 1)
            canvas.add_digit(glyphs[digit], labels[digit])
        return canvas.image(), canvas.objects()


@functools.cache
def digits(train: bool) -> tuple[numpy.ndarray, numpy.ndarray]:
    """(N, 8, 8) float64 from 0 to 1 and labels (N,): the parts that the classifier's demonstration has, too."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    split = train_test_split(images, labels, test_size=0.25, stratify=labels, random_state=0)
    images, labels = (split[0], split[2]) if train else (split[1], split[3])
    return images.reshape(-1, 8, 8) / 16, labels


def enlarge(image: numpy.ndarray, height: int, width: int) -> numpy.ndarray:
    """(h, w, …) to (height, width, …), linear between the centres of pixels; the outer ones go on beyond them."""
    for axis, size in ((0, height), (1, width)):
        length = image.shape[axis]
        position = ((numpy.arange(size) + 0.5) * (length / size) - 0.5).clip(0, length - 1)
        first = numpy.minimum(position.astype(numpy.int64), max(length - 2, 0))
        rest = (position - first).reshape([-1 if i == axis else 1 for i in range(image.ndim)])
        second = numpy.minimum(first + 1, length - 1)
        image = image.take(first, axis) * (1 - rest) + image.take(second, axis) * rest
    return image


class _Canvas:
    """A scene in the making."""

    def __init__(self, style: SceneStyle, random: numpy.random.PCG64):
        self._style, self._random = style, numpy.random.Generator(random)
        # Darker than any ink: coarse colours, and grain.
        coarse = 0.05 + 0.3 * self._random.random((8, 8, 3))
        self._pixels = enlarge(coarse, style.size, style.size)
        self._pixels = self._pixels + 0.06 * (self._random.random((style.size, style.size, 3)) - 0.5)
        self._boxes: list[tuple[int, int, int, int]] = []  # as they were placed: x, y, width, height
        self._masks: list[numpy.ndarray] = []
        self._whole: list[int] = []  # pixels of each mask before others covered it
        self._labels: list[int] = []

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * self._random.random()

    def integer(self, low: int, high: int) -> int:
        """From `low` to `high`, both included."""
        return low + int(self._random.random() * (high - low + 1))

    def add_clutter(self, glyphs: numpy.ndarray) -> None:
        """A line, a rectangle, a disc, or a digit whose quarters are exchanged: strokes alone are no evidence."""
        size = self._style.size
        kind = self.integer(0, 3)
        x, y = self.uniform(0, size), self.uniform(0, size)
        rows, columns = numpy.mgrid[0:size, 0:size] + 0.5
        if kind == 0:
            dx, dy = self.uniform(-1, 1), self.uniform(-1, 1)
            length = max((dx * dx + dy * dy) ** 0.5, 1e-3)
            distance = abs((columns - x) * dy - (rows - y) * dx) / length
            ink = (distance < self.uniform(0.6, 1.6)).astype(numpy.float64)
        elif kind == 1:
            width, height = self.uniform(4, size / 3), self.uniform(4, size / 3)
            ink = ((abs(columns - x) < width / 2) & (abs(rows - y) < height / 2)).astype(numpy.float64)
        elif kind == 2:
            radius = self.uniform(2, size / 8)
            ink = ((columns - x) ** 2 + (rows - y) ** 2 < radius**2).astype(numpy.float64)
        else:
            glyph = glyphs[self.integer(0, len(glyphs) - 1)]
            torn = numpy.roll(glyph, (4, 4), (0, 1))
            width = self.integer(self._style.smallest, self._style.largest)
            ink = self._placed(enlarge(torn, width, width), int(x - width / 2), int(y - width / 2))
        colour = 0.15 + 0.5 * self._random.random(3)
        self._blend(0.8 * ink, colour)

    def add_digit(self, glyph: numpy.ndarray, label: int) -> None:
        """Place a digit where it covers little of others, in a colour that can be seen there; else leave it out."""
        style = self._style
        ratio = style.largest / style.smallest
        width = style.smallest * ratio ** self._random.random()
        height = width * self.uniform(0.8, 1.25)
        width, height = (min(round(side), style.size) for side in (width, height))
        for _ in range(TRIES):
            x, y = self.integer(0, style.size - width), self.integer(0, style.size - height)
            if all(_overlap((x, y, width, height), box) <= MAX_OVERLAP for box in self._boxes):
                break
        else:
            return
        ink = self._placed(enlarge(glyph, height, width), x, y)
        mask = ink > INK
        under = (self._pixels[mask] * LUMINANCE).sum(1).mean() if mask.any() else 1.0
        for _ in range(TRIES):
            colour = 0.35 + 0.65 * self._random.random(3)
            if (colour * LUMINANCE).sum() - under >= MIN_CONTRAST:
                break
        else:
            return
        self._blend(ink, colour)
        self._masks = [other & ~mask for other in self._masks]
        self._masks.append(mask)
        self._whole.append(int(mask.sum()))
        self._boxes.append((x, y, width, height))
        self._labels.append(int(label))

    def image(self) -> Image.Image:
        """The canvas as RGB."""
        return Image.fromarray((self._pixels.clip(0, 1) * 255 + 0.5).astype(numpy.uint8))

    def objects(self) -> Objects:
        """The digits that can be seen, in the order of drawing."""
        size = self._style.size
        masks = numpy.array(self._masks, dtype=bool).reshape(-1, size, size)
        area = masks.sum((1, 2))
        chosen = area > MIN_VISIBLE * numpy.array(self._whole, dtype=numpy.float64)
        masks, area = masks[chosen], area[chosen]
        return Objects(
            boxes=mask_boxes(masks),
            labels=numpy.array(self._labels, dtype=numpy.int64)[chosen],
            masks=masks,
            area=area.astype(numpy.float32),
            crowd=numpy.zeros(len(masks), dtype=bool),
        )

    def _placed(self, ink: numpy.ndarray, x: int, y: int) -> numpy.ndarray:
        """`ink` with its upper left corner at (x, y) of an empty canvas; what lies outside is cut off."""
        size, (height, width) = self._style.size, ink.shape
        whole = numpy.zeros((size, size))
        left, top, right, bottom = max(x, 0), max(y, 0), min(x + width, size), min(y + height, size)
        if left < right and top < bottom:
            whole[top:bottom, left:right] = ink[top - y : bottom - y, left - x : right - x]
        return whole

    def _blend(self, ink: numpy.ndarray, colour: numpy.ndarray) -> None:
        ink = ink[..., None]
        self._pixels = self._pixels * (1 - ink) + colour * ink


def mask_boxes(masks: numpy.ndarray) -> numpy.ndarray:
    """(N, 4) float32: the smallest boxes around masks (N, H, W) that are not empty."""
    boxes = numpy.zeros((len(masks), 4), dtype=numpy.float32)
    for box, mask in zip(boxes, masks, strict=True):
        rows, columns = mask.any(1).nonzero()[0], mask.any(0).nonzero()[0]
        box[:] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    return boxes


def _overlap(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> float:
    """The part of the smaller box that both cover."""
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    return max(width, 0) * max(height, 0) / min(a[2] * a[3], b[2] * b[3])
