# SPDX-License-Identifier: MIT
"""What is done to an image that a network is judged on."""

from __future__ import annotations

from PIL import Image
from timm.data import create_transform
from timm.data.transforms import str_to_interp_mode
from torchvision import transforms

from training.compute import ImageFormat

SMALL_INPUT = 64
"""Up to this size nothing is cut away: images are resized to it, and training shifts them by up to an eighth."""
MAX_PROPORTION = 16
"""How much longer than wide an image is resized. What is cut off lies outside the center crop of any longer image."""


def evaluation_transform(image_format: ImageFormat):
    """PIL image to uint8 (3, size, size): resize and center crop, or resize alone for small inputs."""
    size = image_format.size
    if size <= SMALL_INPUT:
        resize = transforms.Resize((size, size), interpolation=str_to_interp_mode(image_format.interpolation))
        return transforms.Compose([resize, transforms.PILToTensor()])
    resize_and_crop = create_transform(
        size, is_training=False, normalize=False, crop_pct=image_format.crop_pct,
        interpolation=image_format.interpolation,
    )  # fmt: skip
    return transforms.Compose([trim_long_side, resize_and_crop])


def trim_long_side(image: Image.Image) -> Image.Image:
    """The middle of an image that is more than `MAX_PROPORTION` times as long as wide, others as they are.

    Resizing comes before the center crop, and would make 2 GB of pixels of an image of 1×12000 to keep 224 rows.
    """
    short, long = sorted(image.size)
    # by whole pixels at either end, so that the middle stays where it is
    cut = (long - MAX_PROPORTION * short) // 2
    if cut <= 0:
        return image
    width, height = image.size
    box = (cut, 0, width - cut, height) if width > height else (0, cut, width, height - cut)
    return image.crop(box)
