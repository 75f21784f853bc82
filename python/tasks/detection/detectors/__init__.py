# SPDX-License-Identifier: MIT
"""Detectors on our backbones, behind one interface, which is torchvision's.

    detector(images, targets) → losses by name, in training; their sum is minimized
    detector(images) → [{boxes, scores, labels[, masks]}, …], in evaluation

images: list of (3, H, W) float tensors, normalized, of any sizes. targets: dicts of boxes (N, 4) float32, x1, y1, x2,
y2 in pixels, labels (N,) int64 from 0, and for masks (N, H, W) uint8. Objects found have boxes within the image, in its
pixels, scores in falling order, labels from 0; masks (N, H, W) are probabilities.

settings (what a detector is made of), backbone (timm's networks, weights of classifiers), pyramid, retinanet,
mask_rcnn (torchvision's), queries, set_loss, detr, smca, deformable (transformers').
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
from collections.abc import Callable

from torch import nn

from tasks.detection.detectors.backbone import (
    LoadedWeights,
    body_of,
    describe_backbones,
    freeze_norms,
    list_backbones,
    load_classifier,
    why_not,
)
from tasks.detection.detectors.settings import PRESETS, DetectorSettings
from training.errors import OptionError

__all__ = [
    "DETECTORS",
    "PRESETS",
    "DetectorSettings",
    "LoadedWeights",
    "body_of",
    "build_detector",
    "describe_backbones",
    "freeze_norms",
    "list_backbones",
    "load_classifier",
    "preset",
    "why_not",
]


@dataclasses.dataclass(frozen=True)
class Builder:
    """A detector's builder, imported when it is called: RetinaNet and R-CNN need no transformers."""

    file: str
    function: str
    needs: tuple[str, ...]
    losses: tuple[str, ...]
    gives_masks: bool = False

    def __call__(self, num_classes: int, settings: DetectorSettings) -> nn.Module:
        missing = [name for name in self.needs if importlib.util.find_spec(name) is None]
        if missing:
            raise OptionError(f"--detector needs {' and '.join(missing)}: pip install 'container_kernels[detection]'")
        build: Callable = getattr(importlib.import_module(f"{__name__}.{self.file}"), self.function)
        return build(num_classes, settings)


_TORCHVISION, _TRANSFORMERS = ("torchvision",), ("transformers", "scipy")
_DENSE, _SET = ("class", "box"), ("class", "box", "giou")
_RCNN = ("objectness", "proposal box", "class", "box")
DETECTORS: dict[str, Builder] = {
    "retinanet": Builder("retinanet", "build_retinanet", _TORCHVISION, _DENSE),
    "faster-rcnn": Builder("mask_rcnn", "build_faster_rcnn", _TORCHVISION, _RCNN),
    "mask-rcnn": Builder("mask_rcnn", "build_mask_rcnn", _TORCHVISION, (*_RCNN, "mask"), gives_masks=True),
    "detr": Builder("detr", "build_detr", _TRANSFORMERS, _SET),
    "conditional-detr": Builder("detr", "build_conditional_detr", _TRANSFORMERS, _SET),
    "smca-detr": Builder("smca", "build_smca_detr", _TRANSFORMERS, _SET),
    "deformable-detr": Builder("deformable", "build_deformable_detr", _TRANSFORMERS, _SET),
}


def preset(name: str, detector: str) -> DetectorSettings:
    """Settings of `PRESETS`: "coco" (those of papers) or "scenes" (small ones, for the scenes of digits).

    Raises:
        OptionError: there is no such preset or detector.
    """
    for kind, given, known in (("preset", name, PRESETS), ("--detector", detector, DETECTORS)):
        if given not in known:
            raise OptionError(f"{kind}: expected one of {', '.join(known)}, got {given!r}")
    return PRESETS[name][detector]


def build_detector(name: str, num_classes: int, settings: DetectorSettings) -> nn.Module:
    """Detector `name` of `DETECTORS` for labels 0 … num_classes − 1, on a CPU, in training mode.

    Raises:
        OptionError: there is no such detector, a package is missing, or the settings do not go together.
    """
    if name not in DETECTORS:
        raise OptionError(f"--detector: expected one of {', '.join(DETECTORS)}, got {name!r}")
    if num_classes < 1:
        raise OptionError(f"num_classes: expected at least 1, got {num_classes}")
    return DETECTORS[name](num_classes, settings)
