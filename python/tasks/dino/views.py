# SPDX-License-Identifier: MIT
"""What is made of an image: several views of it, uint8."""

from __future__ import annotations

import math
import random

import numpy
import torch
from PIL import Image, ImageFilter, ImageOps
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from tasks.dino.options import DinoOptions

GLOBAL_VIEWS = 2
JITTER = (0.4, 0.4, 0.2, 0.1)  # of brightness, contrast, saturation, hue
BLUR = ((1.0, 0.1), 0.5)  # probability in the two global views and in local ones
SOLARIZE = (0.0, 0.2)  # in the two global views
DIGIT_SIDE = ((0.7, 1.0), (0.8, 1.0))  # part of the canvas that a digit fills, in global and local views
DIGIT_TURN = 0.3  # radians at most, to either side
DIGIT_NOISE = 0.03  # deviation, of a range of 1


class Views:
    """PIL image → its views, uint8 (3, size, size): two global ones, then the local ones."""

    def __init__(self, options: DinoOptions):
        make = {"photographs": photograph_views, "digits": digit_views}[options.views]
        self.views = make(options)

    def __call__(self, image: Image.Image) -> list[torch.Tensor]:
        return [view(image) for view in self.views]


def photograph_views(options: DinoOptions) -> list:
    """The official views: crops of an area, flips, colours, grey, blur, and solarization in the second."""
    (first, second), local = BLUR if options.blur else ((0.0, 0.0), 0.0)
    solarize = SOLARIZE if options.blur else (0.0, 0.0)
    size, scale = options.global_crops_size, options.global_crops_scale
    global_views = [
        _photograph_view(options, size, scale, blur, inverted)
        for blur, inverted in zip((first, second), solarize, strict=True)
    ]
    one = _photograph_view(options, options.local_crops_size, options.local_crops_scale, local, 0.0)
    return [*global_views, *[one] * options.local_crops_number]


def _photograph_view(options: DinoOptions, size: int, scale: tuple[float, ...], blur: float, solarize: float):
    parts: list = [
        transforms.RandomResizedCrop(size, scale=tuple(scale), interpolation=InterpolationMode.BICUBIC),
        transforms.RandomHorizontalFlip(options.hflip),
    ]
    if options.color_strength > 0:
        jitter = transforms.ColorJitter(*(options.color_strength * part for part in JITTER))
        parts += [transforms.RandomApply([jitter], p=0.8), transforms.RandomGrayscale(0.2)]
    return transforms.Compose(
        [*parts, _Sometimes(_blur, blur), _Sometimes(_solarize, solarize), transforms.PILToTensor()]
    )


class _Sometimes:
    """Applies a change with a probability; draws nothing where that is 0."""

    def __init__(self, change, probability: float):
        self.change, self.probability = change, probability

    def __call__(self, image: Image.Image) -> Image.Image:
        return self.change(image) if self.probability and random.random() < self.probability else image


def _blur(image: Image.Image) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0)))


def _solarize(image: Image.Image) -> Image.Image:
    return ImageOps.solarize(image)


def digit_views(options: DinoOptions) -> list:
    """The whole image somewhere on a black canvas, of another size, turned a little, with noise."""
    (of_global, of_local) = DIGIT_SIDE
    one = PlacedDigit(options.global_crops_size, of_global)
    other = PlacedDigit(options.local_crops_size, of_local)
    return [*[one] * GLOBAL_VIEWS, *[other] * options.local_crops_number]


class PlacedDigit:
    """PIL image → uint8 (3, size, size): its side is a part of the canvas, between the bounds `side`."""

    def __init__(self, size: int, side: tuple[float, float]):
        self.size, self.side = size, side

    def __call__(self, image: Image.Image) -> torch.Tensor:
        side = random.uniform(*self.side) * self.size
        x, y = (random.uniform(0, self.size - side) + side / 2 for _ in range(2))
        angle = random.uniform(-DIGIT_TURN, DIGIT_TURN)
        scale = image.width / side
        cos, sin = scale * math.cos(angle), scale * math.sin(angle)
        # Pixel of the canvas → pixel of the image, about the middle of both.
        matrix = (
            cos, sin, image.width / 2 - cos * x - sin * y,
            -sin, cos, image.height / 2 + sin * x - cos * y,
        )  # fmt: skip
        canvas = image.transform((self.size, self.size), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
        pixels = numpy.asarray(canvas, dtype=numpy.float32)
        pixels = pixels + numpy.random.normal(0.0, 255 * DIGIT_NOISE, pixels.shape[:2])[..., None]
        return torch.from_numpy(pixels.round().clip(0, 255).astype(numpy.uint8)).permute(2, 0, 1).contiguous()
