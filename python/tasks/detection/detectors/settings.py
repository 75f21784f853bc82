# SPDX-License-Identifier: MIT
"""What a detector is made of, and the two sets of values for it: COCO's recipes and the scenes of digits."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

Sizes = tuple[tuple[float, ...], ...]


@dataclasses.dataclass(frozen=True)
class DetectorSettings:
    """Sizes of a detector. Each kind reads its own part; the defaults are those of RetinaNet on COCO.

    backbone: a network of timm with `features_only`, model_kwargs: what it is built with.
    drop_path: stochastic depth of the backbone; 0 leaves it to the backbone's own default.
    strides: the features that are taken from the backbone, fine to coarse.
    detections: at most so many objects an image; score_threshold, nms_threshold: of RetinaNet and R-CNN.

    RetinaNet and R-CNN: fpn_channels, fpn_norm ("none", "batch": batch norm after every convolution of the pyramid),
    coarser_levels (of stride 2 each, on top of the pyramid), anchor_sizes (pixels, one tuple a level) and
    anchor_ratios (height : width).
    RetinaNet: head_convs (1 to 4), head_groups (of group norms in the head, 0: none), box_loss ("l1", "giou").
    R-CNN: proposals and proposals_evaluation (an image, after suppression), sampled_anchors, sampled_rois (of an image
    that is trained on), box_features (width of the box head), mask_convs (widths in the mask head).

    DETR and its descendants: queries, d_model, heads, encoder_layers, decoder_layers, ffn, dropout, auxiliary_losses
    (after every decoder layer), no_object_weight (DETR).
    Deformable DETR: levels (beyond `strides`, they come from convolutions of stride 2), points (of every head and
    level), box_refinement, two_stage.
    """

    backbone: str = "container_light"
    model_kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    drop_path: float = 0.1
    strides: tuple[int, ...] = (8, 16, 32)
    detections: int = 100
    score_threshold: float = 0.05
    nms_threshold: float = 0.5

    fpn_channels: int = 256
    fpn_norm: str = "none"
    coarser_levels: int = 2
    anchor_sizes: Sizes = tuple((s, int(s * 2 ** (1 / 3)), int(s * 2 ** (2 / 3))) for s in (32, 64, 128, 256, 512))
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    head_convs: int = 4
    head_groups: int = 0
    box_loss: str = "l1"

    proposals: int = 2000
    proposals_evaluation: int = 1000
    sampled_anchors: int = 256
    sampled_rois: int = 512
    box_features: int = 1024
    mask_convs: tuple[int, ...] = (256, 256, 256, 256)

    queries: int = 100
    d_model: int = 256
    heads: int = 8
    encoder_layers: int = 6
    decoder_layers: int = 6
    ffn: int = 2048
    dropout: float = 0.1
    auxiliary_losses: bool = True
    no_object_weight: float = 0.1
    levels: int = 4
    points: int = 4
    box_refinement: bool = True
    two_stage: bool = False


_COCO = DetectorSettings()
_COCO_RCNN = dataclasses.replace(
    _COCO, strides=(4, 8, 16, 32), coarser_levels=1, anchor_sizes=tuple((size,) for size in (32, 64, 128, 256, 512))
)
_COCO_DETR = dataclasses.replace(_COCO, strides=(32,))
_COCO_300 = dataclasses.replace(_COCO_DETR, queries=300)

# Small enough to be trained from nothing on a CPU. Attention in the two coarser stages only: in the finer ones it costs
# most and finds no more.
_SCENES = dataclasses.replace(
    _COCO,
    backbone="container",
    model_kwargs={
        "embed_dims": (32, 64, 128, 160),
        "depths": (1, 1, 2, 1),
        "num_heads": (1, 2, 4, 5),
        "mlp_ratios": 4,
        "dynamic": (False, False, True, True),
    },
    drop_path=0.0,
    fpn_channels=64,
    fpn_norm="batch",
    coarser_levels=0,
    anchor_sizes=tuple((2 * s, 2.52 * s, 3.17 * s) for s in (8, 16, 32)),
    anchor_ratios=(0.6, 1.0, 1.6),
    head_convs=2,
    head_groups=8,
)
_SCENES_RCNN = dataclasses.replace(
    _SCENES,
    strides=(4, 8, 16, 32),
    anchor_sizes=((16,), (24,), (36,), (54,)),
    proposals=64,
    proposals_evaluation=64,
    sampled_anchors=64,
    sampled_rois=32,
    box_features=128,
    mask_convs=(64, 64),
)
_SCENES_DETR = dataclasses.replace(
    _SCENES, strides=(16,), queries=24, d_model=128, encoder_layers=2, decoder_layers=3, ffn=256, dropout=0.0
)

PRESETS: dict[str, dict[str, DetectorSettings]] = {
    "coco": {
        "retinanet": _COCO,
        "faster-rcnn": _COCO_RCNN,
        "mask-rcnn": _COCO_RCNN,
        "detr": _COCO_DETR,
        "conditional-detr": _COCO_300,
        "smca-detr": _COCO_300,
        "deformable-detr": dataclasses.replace(_COCO_300, strides=(8, 16, 32), ffn=1024),
    },
    "scenes": {
        "retinanet": _SCENES,
        "faster-rcnn": _SCENES_RCNN,
        "mask-rcnn": _SCENES_RCNN,
        "detr": _SCENES_DETR,
        "conditional-detr": _SCENES_DETR,
        "smca-detr": _SCENES_DETR,
        "deformable-detr": dataclasses.replace(_SCENES_DETR, strides=(8, 16, 32), levels=3),
    },
}
