# SPDX-License-Identifier: MIT
"""Masks in COCO's spellings, by faster-coco-eval: polygons, run lengths as numbers or as text."""

from __future__ import annotations

import math
from typing import Any

import numpy

from training.errors import DataError

RLE = dict[str, Any]


def mask_api():
    """faster-coco-eval's functions of masks. Raises DataError where it is missing."""
    try:
        from faster_coco_eval.core import mask
    except ImportError as error:
        raise DataError("masks need faster-coco-eval: pip install 'container_kernels[detection]'") from error
    return mask


def as_rle(segmentation: Any, size: tuple[int, int]) -> RLE:
    """The run lengths of an annotation's segmentation of an image of `size` (height, width).

    Raises:
        ValueError: it is neither polygons nor run lengths of such an image.
    """
    height, width = size
    if isinstance(segmentation, list):
        if not all(
            isinstance(polygon, list) and len(polygon) >= 6 and len(polygon) % 2 == 0 for polygon in segmentation
        ):
            raise ValueError("a polygon has less than three points, or an odd number of coordinates")
        if not all(isinstance(x, (int, float)) and math.isfinite(x) for polygon in segmentation for x in polygon):
            raise ValueError("a coordinate of a polygon is no finite number")
        api = mask_api()
        return api.merge(api.frPyObjects(segmentation, height, width))
    if not isinstance(segmentation, dict) or "counts" not in segmentation:
        raise ValueError("expected polygons, or run lengths with 'counts'")
    if segmentation.get("size") not in ([height, width], (height, width)):
        raise ValueError(f"its size is {segmentation.get('size')}, the image's {[height, width]}")
    counts = segmentation["counts"]
    if isinstance(counts, list):
        if not all(isinstance(run, int) and run >= 0 for run in counts) or sum(counts) != height * width:
            raise ValueError(f"its runs do not add up to {height * width} pixels")
        return mask_api().frPyObjects(segmentation, height, width)
    if not isinstance(counts, (str, bytes)):
        raise ValueError(f"expected run lengths as numbers or text, got {type(counts).__name__}")
    rle = {"size": [height, width], "counts": counts.encode() if isinstance(counts, str) else counts}
    try:
        mask_api().decode(rle)
    except RuntimeError as error:
        raise ValueError(str(error)) from error
    return rle


def decode_rle(rle: RLE) -> numpy.ndarray:
    """(H, W) bool."""
    return mask_api().decode(rle).astype(bool)


def encode_mask(mask: numpy.ndarray) -> RLE:
    """Run lengths of a mask (H, W), as text that json can hold."""
    rle = mask_api().encode(numpy.asfortranarray(mask.astype(numpy.uint8)))
    counts = rle["counts"]
    return {
        "size": [int(side) for side in rle["size"]],
        "counts": counts.decode() if isinstance(counts, bytes) else counts,
    }
