# SPDX-License-Identifier: MIT
"""SMCA-DETR (Gao et al., 2021), of one scale: DETR whose queries look at a Gaussian spot of the image.

Every query guesses a centre from its embedding, every head adds an offset and two scales of its own (`--dynamic_scale
type3` of the official program); −((x − cx)² sx² + (y − cy)² sy²) / 8 is added to what cross attention compares. Encoder
and layers are transformers' DETR; the decoder's loop is here, since each layer needs its spots.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, scaled_dot_product_attention
from transformers import DetrForObjectDetection
from transformers.models.detr.modeling_detr import DetrMLPPredictionHead

from tasks.detection.detectors.detr import require_one_stride
from tasks.detection.detectors.queries import QueryDetector, begin_focal, keep_float32, make_network
from tasks.detection.detectors.settings import DetectorSettings

SMOOTH = 8.0


class Spots(NamedTuple):
    """Where the heads of the queries look, in cells of the feature map; both (B, M, Q, 2), x and y, float32."""

    centre: Tensor
    scale: Tensor  # squared: 0 looks everywhere


class SpotHead(nn.Module):
    """Offsets and scales of one layer's heads, from its queries (B, Q, d_model)."""

    def __init__(self, d_model: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(d_model)
        self.offset = nn.Linear(d_model, 2 * heads)
        self.scale = nn.Linear(d_model, 2 * heads)
        nn.init.xavier_uniform_(self.offset.weight)
        nn.init.zeros_(self.scale.weight)
        nn.init.ones_(self.scale.bias)

    def forward(self, queries: Tensor, centre: Tensor | None, guess: nn.Module, cells: Tensor):
        """`Spots`, the centres (B, Q, 2) before offsets, and their logits where they are guessed.

        centre: those of the first layer, None in it, where `guess` makes them. cells: (B, 2), the images' size.
        """
        queries = self.norm(queries)
        logits = None
        if centre is None:
            logits = guess(queries)
            centre = logits.sigmoid() * cells[:, None]
        offset, scale = (layer(queries).unflatten(-1, (self.heads, 2)) for layer in (self.offset, self.scale))
        return Spots((centre[:, :, None] + offset).transpose(1, 2), scale.square().transpose(1, 2)), centre, logits


class SmcaDetr(QueryDetector):
    """See `QueryDetector`."""

    def __init__(self, network: DetrForObjectDetection, num_classes: int, settings: DetectorSettings):
        super().__init__(network, num_classes, settings, focal=True)
        self.stride = settings.strides[0]
        d_model = settings.d_model
        self.guess = DetrMLPPredictionHead(d_model, d_model, 2, 3)
        for layer in self.guess.layers:
            nn.init.xavier_uniform_(layer.weight)
        self.spots = nn.ModuleList(SpotHead(d_model, settings.heads) for _ in range(settings.decoder_layers))
        keep_float32(self.guess)
        keep_float32(self.spots)

    def predict(self, pixels: Tensor, mask: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
        model = self.network.model
        feature_map, seen = model.backbone(pixels, mask)[-1]
        position = model.position_embedding(feature_map.shape, pixels.device, pixels.dtype, seen)
        position = position.flatten(2).transpose(1, 2)
        memory = model.encoder(
            inputs_embeds=model.input_projection(feature_map).flatten(2).transpose(1, 2),
            attention_mask=seen.flatten(1),
            spatial_position_embeddings=position,
        ).last_hidden_state
        states, guessed = self.decode(memory, position, seen, sizes / self.stride)
        boxes = self.network.bbox_predictor(states)
        boxes = torch.cat([boxes[..., :2] + guessed, boxes[..., 2:]], -1).sigmoid()
        return self.network.class_labels_classifier(states), boxes

    def decode(self, memory: Tensor, position: Tensor, seen: Tensor, cells: Tensor) -> tuple[Tensor, Tensor]:
        """States (L, B, Q, d_model) after the decoder's norm, and the logits of the centres (B, Q, 2).

        Args:
            memory, position: (B, H·W, d_model). seen: (B, H, W) bool, False where images are padded.
            cells: (B, 2), width and height of the images in cells of the map.
        """
        model = self.network.model
        where = model.query_position_embeddings.weight.expand(len(memory), -1, -1)
        state = torch.zeros_like(where)
        centre, guessed, states = None, None, []
        for layer, spot_head in zip(model.decoder.layers, self.spots, strict=True):
            # From the state before self attention, as the official program has it.
            spots, centre, logits = spot_head(state + where, centre, self.guess, cells)
            guessed = logits if guessed is None else guessed
            state = _decoder_layer(layer, state, where, memory, position, seen, spots)
            states.append(model.decoder.layernorm(state))
        return torch.stack(states), guessed


def _decoder_layer(layer, state, where, memory, position, seen, spots):
    """transformers' DetrDecoderLayer, with spots."""

    def add(residual: Tensor, change: Tensor, norm: nn.Module) -> Tensor:
        return norm(residual + dropout(change, layer.dropout, layer.training))

    state = add(state, layer.self_attn(state, position_embeddings=where)[0], layer.self_attn_layer_norm)
    attention = layer.encoder_attn
    query, key, value = (
        project(x).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
        for project, x in (
            (attention.q_proj, state + where),
            (attention.k_proj, memory + position),
            (attention.v_proj, memory),
        )
    )
    rate = attention.attention_dropout if layer.training else 0.0
    looked = spot_attention(query, key, value, spots, seen, rate).transpose(1, 2).flatten(2)
    state = add(state, attention.o_proj(looked), layer.encoder_attn_layer_norm)
    return layer.final_layer_norm(state + layer.mlp(state))


def spot_attention(query, key, value, spots: Spots, seen: Tensor, dropout_rate: float = 0.0) -> Tensor:
    """Attention (B, M, Q, D) of queries (B, M, Q, D) over the cells (B, M, H·W, D) of a map, around spots.

    In float32 the Gaussian is four more channels of queries and keys, so that no (Q, H·W) tensor is ever in memory.
    These would lose its digits in 16 bits, where it is a mask.
    """
    rate = {"dropout_p": dropout_rate, "scale": query.shape[-1] ** -0.5}
    if query.dtype == torch.float32:
        query, key = with_spot_channels(query, key, spots, seen.shape[1:])
        return scaled_dot_product_attention(query, key, value, seen.flatten(1)[:, None, None], **rate)
    mask = spot_mask(spots, seen)
    # Softmax does not see the shift; where a spot lies beside the map, it leaves the nearest cells their digits.
    mask = (mask - mask.amax(-1, keepdim=True)).to(query.dtype)
    return scaled_dot_product_attention(query, key, value, mask, **rate)


def with_spot_channels(query: Tensor, key: Tensor, spots: Spots, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """(B, M, Q, D + 4) and (B, M, H·W, D + 4), whose products have the Gaussian in them, but for what softmax drops.

    −s (x − c)² / 8 = s c x / 4 − s x² / 8 − s c² / 8, and the last part is the same for all cells. x is taken from the
    middle of the map, where the numbers that cancel are smallest.
    """
    grid = _cells(size, query.device)
    middle = (grid[0] + grid[-1]) / 2
    x, centre = grid - middle, spots.centre - middle
    factor = math.sqrt(query.shape[-1]) / SMOOTH  # attention divides by √D
    mine = torch.cat([2 * spots.scale * centre, -spots.scale], -1) * factor
    theirs = torch.cat([x, x.square()], -1).expand(*key.shape[:2], -1, -1)
    return torch.cat([query, mine], -1), torch.cat([key, theirs], -1)


def spot_mask(spots: Spots, seen: Tensor) -> Tensor:
    """The Gaussian as a mask (B, M, Q, H·W) float32, −inf at cells that are padding."""
    grid = _cells(seen.shape[1:], seen.device)
    x, y = ((spots.centre[..., axis, None] - grid[:, axis]).square() * spots.scale[..., axis, None] for axis in (0, 1))
    return (-(x + y) / SMOOTH).masked_fill(~seen.flatten(1)[:, None, None], -math.inf)


def _cells(size: tuple[int, int], device: torch.device) -> Tensor:
    """x and y (H·W, 2) of the cells of a map, float32."""
    rows, columns = (torch.arange(length, device=device, dtype=torch.float32) for length in size)
    return torch.stack(torch.meshgrid(columns, rows, indexing="xy"), -1).flatten(0, 1)


def build_smca_detr(num_classes: int, settings: DetectorSettings) -> SmcaDetr:
    """SMCA-DETR for labels 0 … num_classes − 1. Raises OptionError for settings that do not go together."""
    require_one_stride(settings)
    network = make_network(DetrForObjectDetection, num_classes, settings)
    network.class_labels_classifier = nn.Linear(settings.d_model, num_classes)  # no class for "no object"
    begin_focal(network.class_labels_classifier)
    keep_float32(network.class_labels_classifier)
    keep_float32(network.bbox_predictor)
    return SmcaDetr(network, num_classes, settings)
