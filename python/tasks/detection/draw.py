# SPDX-License-Identifier: MIT
"""Pictures of detections: boxes, labels, scores and masks on images, and sheets of several."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence

import numpy
import torch
from PIL import Image
from torchvision.transforms.v2.functional import pil_to_tensor
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

MASK_OPACITY = 0.45


def colour_of(label: int) -> tuple[int, int, int]:
    """A bright colour; neighbouring labels have colours far apart."""
    hue = label * 0.618034 % 1  # the golden ratio visits all hues evenly
    return tuple(round(255 * part) for part in colorsys.hsv_to_rgb(hue, 0.75, 1.0))


def draw_detection(
    image: Image.Image,
    detection: Mapping[str, torch.Tensor],
    names: Sequence[str],
    threshold: float = 0.5,
    scale: float = 1,
) -> Image.Image:
    """`image`, `scale` times as large, with what was found in it at `threshold` or above.

    Args:
        detection: boxes (N, 4) in pixels of the image, labels (N,), scores (N,) or none for annotations, and masks
            (N, H, W) bool if there are any.
        names: of the labels.
    """
    boxes, labels = detection["boxes"].detach().cpu().float(), detection["labels"].cpu()
    scores = detection.get("scores")
    chosen = torch.ones(len(labels), dtype=torch.bool) if scores is None else scores.detach().cpu() >= threshold
    captions = [names[label] for label in labels.tolist()]
    if scores is not None:
        captions = [f"{name} {score:.2f}" for name, score in zip(captions, scores.tolist(), strict=True)]
    colours = [colour_of(label) for label in labels[chosen].tolist()]
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    canvas = pil_to_tensor(image.convert("RGB").resize(size, Image.Resampling.BICUBIC))
    if not colours:
        return _as_image(canvas)
    if "masks" in detection:
        masks = detection["masks"].cpu()[chosen]
        masks = torch.nn.functional.interpolate(masks[:, None].float(), size[::-1], mode="nearest-exact")[:, 0].bool()
        canvas = draw_segmentation_masks(canvas, masks, MASK_OPACITY, colours)
    boxes = boxes[chosen] * torch.tensor([size[0] / image.width, size[1] / image.height]).repeat(2)
    boxes[:, 2:] = torch.maximum(boxes[:, 2:] - 1, boxes[:, :2])  # the last pixel is inside
    labels_shown = [caption for caption, shown in zip(captions, chosen.tolist(), strict=True) if shown]
    width = max(1, round(max(size) / 400))
    text = {"label_colors": "black", "label_background_colors": colours, "fill_labels": True}
    return _as_image(draw_bounding_boxes(canvas, boxes, labels_shown, colours, width=width, **text))


def sheet(images: Sequence[Image.Image], columns: int, gap: int = 4) -> Image.Image:
    """The images side by side, in rows of `columns`, each in a cell as large as the largest."""
    width, height = max(image.width for image in images), max(image.height for image in images)
    rows = -(-len(images) // columns)
    columns = min(columns, len(images))
    page = Image.new("RGB", (columns * (width + gap) + gap, rows * (height + gap) + gap), "white")
    for place, image in enumerate(images):
        x, y = place % columns * (width + gap) + gap, place // columns * (height + gap) + gap
        page.paste(image, (x + (width - image.width) // 2, y + (height - image.height) // 2))
    return page


def _as_image(pixels: torch.Tensor) -> Image.Image:
    return Image.fromarray(numpy.ascontiguousarray(pixels.permute(1, 2, 0).numpy()))
