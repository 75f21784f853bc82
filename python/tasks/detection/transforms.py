# SPDX-License-Identifier: MIT
"""From a read image and its objects to what a detector takes: sizes, flips, crops, by torchvision's transforms.

Samples stay uint8 until they are on the device. Masks and boxes follow the image; what a crop leaves nothing of is
dropped.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from tasks.detection.annotations import Objects

Sample = tuple[torch.Tensor, dict[str, torch.Tensor]]
"""Image uint8 (3, H, W); boxes (N, 4) float32, labels (N,) int64 and, if the source has them, masks (N, H, W) bool."""

# Sides, of a box that a crop has cut, below which there is nothing left to see.
MIN_SIDE = 1.0


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Short sides, of which training draws one per image, and the most that a long side may be."""

    short: tuple[int, ...]
    longest: int


@dataclasses.dataclass(frozen=True)
class Crops:
    """For half of the images: first resized to one of `short`, then cut to `smallest` … `largest` pixels a side."""

    short: tuple[int, ...] = (400, 500, 600)
    smallest: int = 384
    largest: int = 600


def resized(height: int, width: int, short: int, longest: int) -> tuple[int, int]:
    """Height and width whose short side is `short`, or less where the long side would be above `longest`."""
    scale = min(short / min(height, width), longest / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def as_sample(image: Image.Image, objects: Objects) -> Sample:
    """Crowds are left out: nothing is trained on them."""
    objects = objects.select(~objects.crowd)
    canvas = (image.height, image.width)
    target = {
        "boxes": tv_tensors.BoundingBoxes(torch.from_numpy(objects.boxes), format="XYXY", canvas_size=canvas),
        "labels": torch.from_numpy(objects.labels),
    }
    if objects.masks is not None:
        target["masks"] = tv_tensors.Mask(torch.from_numpy(objects.masks))
    return tv_tensors.Image(F.pil_to_tensor(image)), target


class TrainingTransform:
    """Random flips, sizes and crops; draws from torch's generator alone."""

    def __init__(self, sizes: Sizes, flip: float, crops: Crops | None):
        self.sizes, self.flip, self.crops = sizes, flip, crops

    def __call__(self, image: Image.Image, objects: Objects) -> Sample:
        sample = as_sample(image, objects)
        if torch.rand(()) < self.flip:
            sample = _map(F.horizontal_flip, sample)
        if self.crops is not None and torch.rand(()) < 0.5:
            sample = _resize(sample, _draw(self.crops.short), longest=10**6)
            sample = _random_crop(sample, self.crops.smallest, self.crops.largest)
        return _plain(_resize(sample, _draw(self.sizes.short), self.sizes.longest))


class EvaluationTransform:
    """One size: the last of those of training."""

    def __init__(self, sizes: Sizes):
        self.sizes = sizes

    def __call__(self, image: Image.Image, objects: Objects) -> Sample:
        return _plain(_resize(as_sample(image, objects), self.sizes.short[-1], self.sizes.longest))


def to_original(detection: dict[str, torch.Tensor], seen: tuple[int, int], original: tuple[int, int]) -> dict:
    """A detection in pixels of the image as the detector saw it, in those of the original; sizes (height, width)."""
    scale = detection["boxes"].new_tensor([original[1] / seen[1], original[0] / seen[0]]).repeat(2)
    limits = detection["boxes"].new_tensor([original[1], original[0]]).repeat(2)
    result = {**detection, "boxes": torch.minimum((detection["boxes"] * scale).clamp(min=0), limits)}
    if "masks" in detection and seen != original:
        # A few at a time: as floats, a hundred masks of a photo of 12 megapixels are 5 GB.
        parts = [_masks_of_size(masks, original) for masks in detection["masks"].split(8)]
        result["masks"] = torch.cat(parts)
    return result


def _masks_of_size(masks: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    masks = torch.nn.functional.interpolate(masks[:, None].float(), size, mode="bilinear", align_corners=False)
    return masks[:, 0] >= 0.5


def _draw(choices: Sequence[int]) -> int:
    return choices[int(torch.randint(len(choices), ()))]


def _map(function, sample: Sample, *arguments) -> Sample:
    image, target = sample
    moved = {name: function(value, *arguments) for name, value in target.items() if name != "labels"}
    return function(image, *arguments), {**target, **moved}


def _resize(sample: Sample, short: int, longest: int) -> Sample:
    height, width = sample[0].shape[-2:]
    size = resized(height, width, short, longest)
    if size == (height, width):
        return sample
    image, target = sample
    moved = {name: F.resize(value, list(size)) for name, value in target.items() if name != "labels"}
    return F.resize(image, list(size), interpolation=v2.InterpolationMode.BILINEAR, antialias=True), {**target, **moved}


def _random_crop(sample: Sample, smallest: int, largest: int) -> Sample:
    """A rectangle of random sides, as DETR cuts it, with the objects that are seen in it."""
    image, target = sample
    sides = [int(torch.randint(min(smallest, side), min(largest, side) + 1, ())) for side in image.shape[-2:]]
    corner = [int(torch.randint(side - new + 1, ())) for side, new in zip(image.shape[-2:], sides, strict=True)]
    image, target = _map(F.crop, sample, *corner, *sides)
    boxes = F.clamp_bounding_boxes(target["boxes"])
    seen = ((boxes[:, 2:] - boxes[:, :2]) >= MIN_SIDE).all(1)
    if "masks" in target:
        seen &= target["masks"].flatten(1).any(1)
    kept = {name: value[seen] for name, value in {**target, "boxes": boxes}.items()}
    canvas = tuple(image.shape[-2:])
    kept["boxes"] = tv_tensors.BoundingBoxes(kept["boxes"], format="XYXY", canvas_size=canvas)
    if "masks" in kept:
        kept["masks"] = tv_tensors.Mask(kept["masks"])
    return image, kept


def _plain(sample: Sample) -> Sample:
    """Tensors of torch alone, which workers hand over and networks take."""
    image, target = sample
    return image.as_subclass(torch.Tensor), {name: value.as_subclass(torch.Tensor) for name, value in target.items()}
