# SPDX-License-Identifier: MIT
"""From an image file to RGB: which files count as images, how each mode becomes 8-bit RGB, and errors with a name.

Colors are taken as timm and torchvision take them: an alpha channel is dropped, and a photo stays as its pixels are
stored, whatever its EXIF orientation says, unless `upright` asks for it.
"""

from __future__ import annotations

import functools
import os

import numpy
from PIL import Image, ImageOps

from training.errors import DataError

# Pillow knows these but decodes them by another program or not at all.
NOT_DECODED = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}


@functools.cache
def image_formats() -> tuple[str, ...]:
    """Pillow's names of the formats that it decodes by itself."""
    Image.init()
    return tuple(sorted(Image.OPEN.keys() - NOT_DECODED))


@functools.cache
def image_suffixes() -> frozenset[str]:
    """The endings of those formats' files, in lower case, with the dot."""
    formats = image_formats()
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in formats)


def is_image_name(name: str) -> bool:
    """Whether a file of this name counts as an image."""
    return os.path.splitext(name)[1].lower() in image_suffixes()


def decode_image(file, name: str, *, upright: bool = False) -> Image.Image:
    """The image in `file`, a path or an open file, as RGB.

    Args:
        file: what to read.
        name: what an error calls it.
        upright: turn a photo as its EXIF orientation says.

    Raises:
        DataError: that is not possible, for whatever reason the decoder has.
    """
    try:
        with Image.open(file, formats=image_formats()) as image:
            image.load()
            return _as_rgb(ImageOps.exif_transpose(image) if upright else image, image)
    except DataError as error:
        raise DataError(f"cannot read the image {name}: {error}") from error
    except Exception as error:  # a damaged file fails in as many ways as there are decoders
        reason = error if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
        raise DataError(f"cannot read the image {name}: {reason}") from error


def _as_rgb(image: Image.Image, file: Image.Image) -> Image.Image:
    """`image` in 8-bit RGB; `file` is as it was opened and knows its format."""
    if image.mode == "F" or image.mode.startswith("I"):
        # Pillow's own conversion clips at 255, which leaves white
        gray = numpy.asarray(image) >> (_bits(file) - 8)
        return Image.fromarray(gray.astype(numpy.uint8)).convert("RGB")
    image.info.pop("transparency", None)  # the result has no alpha, and Pillow would warn of it in every worker
    return image.convert("RGB")


def _bits(file: Image.Image) -> int:
    """How many bits the values of a grayscale image of more than 8 have, where its format says so."""
    if file.format in ("PNG", "JPEG2000") and file.mode.startswith("I;16"):
        return 16
    if file.format == "PPM" and file.mode == "I":
        return 16  # Pillow scales whatever the largest value is
    if file.format == "TIFF" and file.mode.startswith("I;16"):
        return file.tag_v2[258][0]  # BitsPerSample
    raise DataError(
        f"the range of its values is not known (Pillow's mode {file.mode} in {file.format}); convert it to 8 or 16 bits"
    )
