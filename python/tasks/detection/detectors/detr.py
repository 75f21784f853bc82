# SPDX-License-Identifier: MIT
"""DETR (Carion et al., 2020) and Conditional DETR (Meng et al., 2021): transformers', with losses after every layer.

transformers' own auxiliary losses overwrite the decoder's state with its normalized copy, and normalize the last one
twice: `auxiliary_loss` stays off there, and the states are taken from the layers.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import ConditionalDetrForObjectDetection, DetrForObjectDetection
from transformers.models.conditional_detr.modeling_conditional_detr import inverse_sigmoid

from tasks.detection.detectors.queries import QueryDetector, begin_focal, keep_float32, make_network
from tasks.detection.detectors.settings import DetectorSettings
from training.errors import OptionError


class Detr(QueryDetector):
    """See `QueryDetector`."""

    def predict(self, pixels: Tensor, mask: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
        states, _ = self._decode(pixels, mask)
        return self.network.class_labels_classifier(states), self.network.bbox_predictor(states).sigmoid()

    def _decode(self, pixels: Tensor, mask: Tensor):
        """States (L, B, Q, d_model) after the decoder's norm, and all that transformers says."""
        model = self.network.model
        said = model(pixels, pixel_mask=mask, output_hidden_states=self.training)
        if not self.training:
            return said.last_hidden_state[None], said
        # Its first entry is the decoder's input, its last one the normalized output.
        _, *between, _ = said.decoder_hidden_states
        return torch.stack([*map(model.decoder.layernorm, between), said.last_hidden_state]), said


class ConditionalDetr(Detr):
    """See `QueryDetector`. Boxes are offsets from a point that a query has learned."""

    def predict(self, pixels: Tensor, mask: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
        states, said = self._decode(pixels, mask)
        # transformers hands points out as (Q, B, 2).
        points = inverse_sigmoid(said.reference_points).transpose(0, 1)
        boxes = self.network.bbox_predictor(states)
        boxes = torch.cat([boxes[..., :2] + points, boxes[..., 2:]], -1).sigmoid()
        return self.network.class_labels_classifier(states), boxes


def build_detr(num_classes: int, settings: DetectorSettings) -> Detr:
    """DETR for labels 0 … num_classes − 1. Raises OptionError for settings that do not go together."""
    require_one_stride(settings)
    network = make_network(DetrForObjectDetection, num_classes, settings)
    keep_float32(network.class_labels_classifier)
    keep_float32(network.bbox_predictor)
    return Detr(network, num_classes, settings, focal=False)


def build_conditional_detr(num_classes: int, settings: DetectorSettings) -> ConditionalDetr:
    """Conditional DETR for labels 0 … num_classes − 1. Raises OptionError for settings that do not go together."""
    require_one_stride(settings)
    if settings.decoder_layers < 2:
        raise OptionError(
            f"decoder_layers: expected at least 2, the first is not conditional, got {settings.decoder_layers}"
        )
    network = make_network(ConditionalDetrForObjectDetection, num_classes, settings)
    begin_focal(network.class_labels_classifier)
    nn.init.zeros_(network.bbox_predictor.layers[-1].weight)
    nn.init.zeros_(network.bbox_predictor.layers[-1].bias)
    for module in (network.class_labels_classifier, network.bbox_predictor, network.model.decoder.ref_point_head):
        keep_float32(module)
    return ConditionalDetr(network, num_classes, settings, focal=True)


def require_one_stride(settings: DetectorSettings) -> None:
    """Raises OptionError unless one map of the backbone is asked for, which is all that is looked at."""
    if len(settings.strides) != 1:
        raise OptionError(f"strides: expected one, got {', '.join(map(str, settings.strides))}")
