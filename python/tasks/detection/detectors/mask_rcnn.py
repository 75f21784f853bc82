# SPDX-License-Identifier: MIT
"""Faster R-CNN (Ren et al., 2015) and Mask R-CNN (He et al., 2017): torchvision's, on our backbones."""

from __future__ import annotations

from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FasterRCNN, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.mask_rcnn import MaskRCNN, MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from tasks.detection.detectors.pyramid import PreparedImages, Pyramid, make_anchors
from tasks.detection.detectors.settings import DetectorSettings
from training.errors import OptionError

BOX_CELLS, MASK_CELLS = 7, 14  # of a region, in each direction
NAMES = {
    "loss_objectness": "objectness",
    "loss_rpn_box_reg": "proposal box",
    "loss_classifier": "class",
    "loss_box_reg": "box",
    "loss_mask": "mask",
}


class Detector(nn.Module):
    """torchvision's R-CNN with labels from 0: its background, label 0, is not seen from outside.

    Masks of objects come as probabilities (N, H, W) in the image.
    """

    def __init__(self, network: GeneralizedRCNN):
        super().__init__()
        self.network = network

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None):
        if targets is not None:
            targets = [{**target, "labels": target["labels"] + 1} for target in targets]
        answer = self.network(images, targets)
        if self.training:
            return {NAMES[name]: loss for name, loss in answer.items()}
        for objects in answer:
            objects["labels"] = objects["labels"] - 1
            if "masks" in objects:
                objects["masks"] = objects["masks"].squeeze(1)
        return answer


# What heads say is float32 under autocast too, since boxes of 8 bits are off by pixels.


class ProposalHead(RPNHead):
    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        objectness, boxes = super().forward(x)
        return [level.float() for level in objectness], [level.float() for level in boxes]


class BoxPredictor(FastRCNNPredictor):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores, boxes = super().forward(x)
        return scores.float(), boxes.float()


class MaskPredictor(MaskRCNNPredictor):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).float()


def build_faster_rcnn(num_classes: int, settings: DetectorSettings) -> Detector:
    """Faster R-CNN for labels 0 … num_classes − 1. Raises OptionError for settings that do not go together."""
    return _build(FasterRCNN, num_classes, settings)


def build_mask_rcnn(num_classes: int, settings: DetectorSettings) -> Detector:
    """Mask R-CNN for labels 0 … num_classes − 1. Raises OptionError for settings that do not go together."""
    width = settings.fpn_channels
    if not settings.mask_convs:
        raise OptionError("mask_convs: expected at least one width, got none")
    return _build(
        MaskRCNN,
        num_classes,
        settings,
        mask_roi_pool=_pooling(settings, MASK_CELLS),
        mask_head=MaskRCNNHeads(width, settings.mask_convs, dilation=1),
        mask_predictor=MaskPredictor(settings.mask_convs[-1], settings.mask_convs[-1], num_classes + 1),
    )


def _pooling(settings: DetectorSettings, cells: int) -> MultiScaleRoIAlign:
    """Regions are read from the maps of the backbone's strides, not from coarser ones."""
    names = [str(level) for level in range(len(settings.strides))]
    return MultiScaleRoIAlign(names, output_size=cells, sampling_ratio=2)


def _build(cls: type[FasterRCNN], num_classes: int, settings: DetectorSettings, **masks: nn.Module) -> Detector:
    if settings.coarser_levels not in (0, 1):
        raise OptionError(f"coarser_levels: expected 0 or 1, got {settings.coarser_levels}")
    backbone = Pyramid(settings, LastLevelMaxPool() if settings.coarser_levels else None)
    anchors = make_anchors(settings, len(settings.strides) + settings.coarser_levels)
    network = cls(
        backbone,
        rpn_anchor_generator=anchors,
        rpn_head=ProposalHead(backbone.out_channels, anchors.num_anchors_per_location()[0]),
        # As many candidates are looked at before suppression as are wanted after it, as torchvision has it.
        rpn_pre_nms_top_n_train=settings.proposals,
        rpn_pre_nms_top_n_test=settings.proposals_evaluation,
        rpn_post_nms_top_n_train=settings.proposals,
        rpn_post_nms_top_n_test=settings.proposals_evaluation,
        rpn_batch_size_per_image=settings.sampled_anchors,
        box_roi_pool=_pooling(settings, BOX_CELLS),
        box_head=TwoMLPHead(backbone.out_channels * BOX_CELLS**2, settings.box_features),
        box_predictor=BoxPredictor(settings.box_features, num_classes + 1),
        box_batch_size_per_image=settings.sampled_rois,
        box_score_thresh=settings.score_threshold,
        box_nms_thresh=settings.nms_threshold,
        box_detections_per_img=settings.detections,
        **masks,
    )
    network.transform = PreparedImages()
    return Detector(network)
