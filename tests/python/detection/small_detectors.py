"""Detectors of the smallest sizes that still have all parts, and images for them."""

import dataclasses

import pytest
import torch

from tasks.detection.detectors import DETECTORS, PRESETS, build_detector

CLASSES = 3
BODY = {"embed_dims": (8, 8, 16, 16), "depths": 1, "num_heads": (1, 1, 2, 2), "mlp_ratios": 2, "kernel_size": 3}
WITH_QUERIES = ("detr", "conditional-detr", "smca-detr", "deformable-detr")
NAMES = tuple(DETECTORS)


def small_settings(name, **changes):
    """Those of the scenes, smaller; without a threshold, so that untrained detectors find something."""
    small = {
        "backbone": "container",
        "model_kwargs": BODY,
        "fpn_channels": 8,
        "head_groups": 4,
        "score_threshold": 0.0,
        "detections": 20,
        "box_features": 16,
        "mask_convs": (8,),
        "queries": 6,
        "d_model": 32,
        "heads": 4,
        "encoder_layers": 1,
        "decoder_layers": 2,
        "ffn": 16,
        "points": 2,
    }
    return dataclasses.replace(PRESETS["scenes"][name], **{**small, **changes})


def small_detector(name, seed=0, **changes):
    if name in WITH_QUERIES:
        for package in ("transformers", "scipy"):
            pytest.importorskip(package, reason="needs the extra: pip install -e '.[detection]'")
    torch.manual_seed(seed)
    return build_detector(name, CLASSES, small_settings(name, **changes))


def small_images(*sizes):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(3, *size, generator=generator) for size in sizes]


def target(boxes, labels, size):
    """Boxes of whole pixels, whose masks are all of the box."""
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    masks = torch.zeros(len(boxes), *size, dtype=torch.uint8)
    for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist(), strict=True):
        mask[top:bottom, left:right] = 1
    return {"boxes": boxes, "labels": torch.tensor(labels, dtype=torch.int64), "masks": masks}


def batch():
    """Two images of unlike sizes, no multiples of a stride, with two objects and one."""
    sizes = (64, 96), (75, 50)
    targets = [
        target([[4, 6, 40, 50], [50, 10, 90, 60]], [0, 2], sizes[0]),
        target([[10, 20, 45, 70]], [1], sizes[1]),
    ]
    return small_images(*sizes), targets
