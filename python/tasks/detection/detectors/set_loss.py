# SPDX-License-Identifier: MIT
"""The loss of DETR and its descendants: predictions are matched with objects one to one, then every layer pays.

Matching and terms are transformers'; weights and what they are divided by are those of the official programs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.loss.loss_deformable_detr import DeformableDetrHungarianMatcher, DeformableDetrImageLoss
from transformers.loss.loss_for_object_detection import HungarianMatcher, ImageLoss

BOX, GIOU = 5.0, 2.0  # costs in matching, and weights in the loss
FOCAL_CLASS = 2.0  # of both, where classes are sigmoids under a focal loss; 1 under a softmax
FOCAL_ALPHA = 0.25


class SetLoss(nn.Module):
    """logits (L, B, Q, K), boxes (L, B, Q, 4) of all L layers that pay, and targets, to losses by name.

    Boxes are centre x, y, width, height by the image's size. A loss is the sum over layers, already weighted.

    Args:
        num_classes: K, or K − 1 under a softmax, whose last class is "no object".
        focal: sigmoids under a focal loss (Deformable, Conditional, SMCA), or a softmax (DETR).
        no_object_weight: of "no object" under a softmax.
    """

    def __init__(self, num_classes: int, focal: bool, no_object_weight: float = 0.1):
        super().__init__()
        self.class_weight = FOCAL_CLASS if focal else 1.0
        if focal:
            matcher = DeformableDetrHungarianMatcher(FOCAL_CLASS, BOX, GIOU)
            self.terms = DeformableDetrImageLoss(matcher, num_classes, FOCAL_ALPHA, [])
        else:
            self.terms = ImageLoss(HungarianMatcher(1.0, BOX, GIOU), num_classes, no_object_weight, [])
            # A setting, not a weight: no part of checkpoints.
            self.terms.register_buffer("empty_weight", self.terms.empty_weight, persistent=False)

    def forward(self, logits: Tensor, boxes: Tensor, targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """targets: dicts of class_labels (N,) and boxes (N, 4), one an image."""
        if not bool(logits.isfinite().all() & boxes.isfinite().all()):
            # The matching would stop with words about corners; a loss that is not finite is what the trainer reports.
            lost = logits.sum() * torch.nan
            return {"class": lost, "box": lost, "giou": lost}
        count = _mean_count(sum(len(target["class_labels"]) for target in targets), logits.device)
        total = {"class": 0.0, "box": 0.0, "giou": 0.0}
        for layer_logits, layer_boxes in zip(logits, boxes, strict=True):
            outputs = {"logits": layer_logits, "pred_boxes": layer_boxes}
            pairs = self.terms.matcher(outputs, targets)
            classes = self.terms.loss_labels(outputs, targets, pairs, count)
            found = self.terms.loss_boxes(outputs, targets, pairs, count)
            total["class"] = total["class"] + self.class_weight * classes["loss_ce"]
            total["box"] = total["box"] + BOX * found["loss_bbox"]
            total["giou"] = total["giou"] + GIOU * found["loss_giou"]
        return total


def _mean_count(count: int, device: torch.device) -> float | Tensor:
    """Objects a rank, at least 1: what sums are divided by, so that ranks with few objects do not weigh more."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return float(max(count, 1))
    total = torch.tensor(float(count), device=device)
    torch.distributed.all_reduce(total)
    return (total / torch.distributed.get_world_size()).clamp(min=1)
