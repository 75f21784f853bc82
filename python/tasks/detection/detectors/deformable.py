# SPDX-License-Identifier: MIT
"""Deformable DETR (Zhu et al., 2021): transformers' network on `container_kernels.deformable_attention`."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from transformers import DeformableDetrForObjectDetection

from container_kernels.integrations.transformers import use_deformable_attention
from tasks.detection.detectors.queries import QueryDetector, begin_focal, keep_float32, make_network
from tasks.detection.detectors.settings import DetectorSettings
from training.errors import OptionError

GROUPS = 32  # of the norms after transformers' input projections
SMALL = -2.0  # logit of the width and the height that boxes begin with, 0.12 of the image


class DeformableDetr(QueryDetector):
    """See `QueryDetector`."""

    def predict(self, pixels: Tensor, mask: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
        # Given labels, transformers asks its loss, which is `_layers` here.
        said = self.network(pixels, pixel_mask=mask, labels=[])
        return said.loss_dict["logits"], said.loss_dict["boxes"]


def _layers(logits, labels, device, last_boxes, config, outputs_class, outputs_coord, **_):
    """In the place of transformers' loss: every layer's logits and boxes as they are."""
    return None, {"logits": outputs_class, "boxes": outputs_coord}, None


def build_deformable_detr(num_classes: int, settings: DetectorSettings) -> DeformableDetr:
    """Deformable DETR for labels 0 … num_classes − 1.

    Raises:
        OptionError: settings that do not go together.
    """
    if settings.two_stage:
        raise OptionError(
            "two_stage: transformers has no loss for the encoder's proposals, so their box head would never learn"
        )
    if settings.d_model % GROUPS:
        raise OptionError(f"d_model: expected a multiple of {GROUPS}, got {settings.d_model}")
    if settings.levels < len(settings.strides):
        raise OptionError(f"levels: expected at least the {len(settings.strides)} strides, got {settings.levels}")
    if settings.box_refinement and settings.decoder_layers < 2:
        raise OptionError(f"decoder_layers: expected at least 2 with box_refinement, got {settings.decoder_layers}")
    network = make_network(
        DeformableDetrForObjectDetection, num_classes, settings,
        num_feature_levels=settings.levels,
        encoder_n_points=settings.points,
        decoder_n_points=settings.points,
        with_box_refine=settings.box_refinement,
    )  # fmt: skip
    _begin_projections(network.model)
    _begin_heads(network, settings.box_refinement)
    keep_float32(network.model.reference_points)
    use_deformable_attention(network)
    network.loss_function = _layers
    return DeformableDetr(network, num_classes, settings, focal=True)


def _begin_projections(model: nn.Module) -> None:
    for projection in model.input_proj:
        nn.init.xavier_uniform_(projection[0].weight)
        nn.init.zeros_(projection[0].bias)
    nn.init.xavier_uniform_(model.reference_points.weight)
    nn.init.zeros_(model.reference_points.bias)
    nn.init.normal_(model.level_embed)


def _begin_heads(network: DeformableDetrForObjectDetection, refinement: bool) -> None:
    """With refinement every layer has heads of its own (transformers ties those of classes); without, all share one.

    Boxes begin at the reference point, small.
    """
    classes, boxes = network.class_embed[0], network.bbox_embed[0]
    begin_focal(classes)
    nn.init.zeros_(boxes.layers[-1].weight)
    nn.init.zeros_(boxes.layers[-1].bias)
    layers = len(network.class_embed)
    keep_float32(classes)
    keep_float32(boxes)
    copied = copy.deepcopy if refinement else (lambda head: head)
    network.class_embed = nn.ModuleList([copied(classes) for _ in range(layers)])
    network.bbox_embed = nn.ModuleList([copied(boxes) for _ in range(layers)])
    with torch.no_grad():
        network.bbox_embed[0].layers[-1].bias[2:] = SMALL
    if refinement:
        network.model.decoder.bbox_embed = network.bbox_embed
    # Nothing of transformers may tie them again.
    network._tied_weights_keys = {}
