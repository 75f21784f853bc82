# SPDX-License-Identifier: MIT
"""RetinaNet (Lin et al., 2017): torchvision's, on our backbones."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torchvision.models.detection.retinanet import RetinaNet, RetinaNetHead
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from tasks.detection.detectors.pyramid import PreparedImages, Pyramid, make_anchors
from tasks.detection.detectors.settings import DetectorSettings
from training.errors import OptionError

BOX_LOSSES = ("l1", "smooth_l1", "giou", "diou", "ciou")


class Head(RetinaNetHead):
    """torchvision's head; what it says is float32 under autocast too, since boxes of 8 bits are off by pixels."""

    def __init__(self, settings: DetectorSettings, anchors: int, num_classes: int):
        if not 1 <= settings.head_convs <= 4:
            raise OptionError(f"head_convs: expected 1 to 4, got {settings.head_convs}")
        if settings.box_loss not in BOX_LOSSES:
            raise OptionError(f"box_loss: expected one of {', '.join(BOX_LOSSES)}, got {settings.box_loss!r}")
        norm = partial(nn.GroupNorm, settings.head_groups) if settings.head_groups else None
        super().__init__(settings.fpn_channels, anchors, num_classes, norm_layer=norm)
        for part in (self.classification_head, self.regression_head):
            part.conv = part.conv[: settings.head_convs]
        self.regression_head._loss_type = settings.box_loss

    def forward(self, x: list[Tensor]) -> dict[str, Tensor]:
        return {name: output.float() for name, output in super().forward(x).items()}


class Detector(RetinaNet):
    """Losses in float32, whatever the autocast of the network is."""

    def compute_loss(self, targets, head_outputs, anchors):
        with torch.autocast(anchors[0].device.type, enabled=False):
            losses = super().compute_loss(targets, head_outputs, anchors)
        return {"class": losses["classification"], "box": losses["bbox_regression"]}


def build_retinanet(num_classes: int, settings: DetectorSettings) -> Detector:
    """RetinaNet for labels 0 … num_classes − 1: every class is one sigmoid, so there is no background to count.

    `coarser_levels` are 2 (P6 from the backbone's coarsest map, P7 from P6) or 0.

    Raises:
        OptionError: settings that do not go together.
    """
    if settings.coarser_levels not in (0, 2):
        raise OptionError(f"coarser_levels: expected 0 or 2, got {settings.coarser_levels}")
    backbone = Pyramid(settings, None)
    if settings.coarser_levels:
        backbone.fpn.extra_blocks = LastLevelP6P7(backbone.features.channels[-1], settings.fpn_channels)
        # It asks whether the two widths differ; of the backbone's map is meant, though they may be equal.
        backbone.fpn.extra_blocks.use_P5 = False
    anchors = make_anchors(settings, len(settings.strides) + settings.coarser_levels)
    detector = Detector(
        backbone,
        num_classes,
        anchor_generator=anchors,
        head=Head(settings, anchors.num_anchors_per_location()[0], num_classes),
        score_thresh=settings.score_threshold,
        nms_thresh=settings.nms_threshold,
        detections_per_img=settings.detections,
    )
    detector.transform = PreparedImages()
    return detector
