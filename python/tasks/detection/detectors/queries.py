# SPDX-License-Identifier: MIT
"""What DETR and its descendants share here: transformers' networks behind torchvision's interface.

transformers' networks differ from the official programs in what is put right here: how weights begin, which dropouts
there are, norms of the backbone that are always frozen.
"""

from __future__ import annotations

import abc
import math

import torch
from torch import Tensor, nn
from torchvision.ops import box_convert
from transformers import AutoBackbone, PreTrainedConfig, PreTrainedModel

from tasks.detection.detectors.backbone import Features, make_features
from tasks.detection.detectors.set_loss import SetLoss
from tasks.detection.detectors.settings import DetectorSettings
from training.errors import OptionError

PADDED_TO = 32  # pixels; a multiple of every stride that a backbone has
PRIOR = 0.01  # probability of every class at the beginning, for focal losses


class QueryDetector(nn.Module, abc.ABC):
    """Images are padded to one batch, with a mask; every query answers with classes and a box.

    network: transformers' detector, with our backbone in it. focal: every class is a sigmoid.
    """

    def __init__(self, network: PreTrainedModel, num_classes: int, settings: DetectorSettings, focal: bool):
        super().__init__()
        self.network = network
        self.focal = focal
        self.detections = settings.detections
        self.auxiliary_losses = settings.auxiliary_losses
        self.loss = SetLoss(num_classes, focal, settings.no_object_weight)

    @abc.abstractmethod
    def predict(self, pixels: Tensor, mask: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (L, B, Q, K) and boxes (L, B, Q, 4) of the decoder's layers, or of the last one alone in evaluation.

        Both are float32; boxes are centre x, y, width, height by the image's size.

        Args:
            pixels: (B, 3, H, W). mask: (B, H, W) bool, False where an image is padded.
            sizes: (B, 2), width and height of the images.
        """

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None):
        pixels, mask = pad(images)
        sizes = torch.tensor([image.shape[:0:-1] for image in images], device=pixels.device)
        logits, boxes = self.predict(pixels, mask, sizes)
        if not self.training:
            return self._select(logits[-1], boxes[-1], sizes)
        if targets is None:
            raise ValueError("targets: expected one dict an image in training, got None")
        if not self.auxiliary_losses:
            logits, boxes = logits[-1:], boxes[-1:]
        labels = [
            {
                "class_labels": target["labels"],
                "boxes": box_convert(target["boxes"].float(), "xyxy", "cxcywh") / size.repeat(2),
            }
            for target, size in zip(targets, sizes, strict=True)
        ]
        with torch.autocast(pixels.device.type, enabled=False):
            return self.loss(logits, boxes, labels)

    def _select(self, logits: Tensor, boxes: Tensor, sizes: Tensor) -> list[dict[str, Tensor]]:
        """The best `detections` answers of every image. With sigmoids a query may answer with several classes."""
        scores = logits.sigmoid() if self.focal else logits.softmax(-1)[..., :-1]
        classes = scores.shape[-1]
        if not self.focal:  # one class a query
            scores, labels = scores.max(-1)
        found = []
        for index, size in enumerate(sizes):
            flat = scores[index].flatten()
            best, order = flat.topk(min(self.detections, len(flat)))
            query = order // classes if self.focal else order
            corners = box_convert(boxes[index, query], "cxcywh", "xyxy").clamp(0, 1) * size.repeat(2)
            label = order % classes if self.focal else labels[index, query]
            found.append({"boxes": corners, "scores": best, "labels": label})
        return found


def pad(images: list[Tensor]) -> tuple[Tensor, Tensor]:
    """One batch (B, 3, H, W), zeros right of and below smaller images, and a mask (B, H, W), True where images are."""
    height, width = (math.ceil(max(image.shape[axis] for image in images) / PADDED_TO) * PADDED_TO for axis in (1, 2))
    pixels = images[0].new_zeros(len(images), 3, height, width)
    mask = torch.zeros(len(images), height, width, dtype=torch.bool, device=pixels.device)
    for index, image in enumerate(images):
        pixels[index, :, : image.shape[1], : image.shape[2]] = image
        mask[index, : image.shape[1], : image.shape[2]] = True
    return pixels, mask


class _WidthsConfig(PreTrainedConfig):
    model_type = "container_kernels_widths"


class _Widths(PreTrainedModel):
    """Stands in for a backbone while transformers builds a detector, which asks for nothing but its widths.

    By itself transformers would make one from a name without arguments, and put frozen norms in the place of all its
    batch norms, without the activations that some of timm's contain.
    """

    config_class = _WidthsConfig
    main_input_name = "pixel_values"

    def __init__(self, config: _WidthsConfig):
        super().__init__(config)
        self.channels = config.channels


AutoBackbone.register(_WidthsConfig, _Widths)


def make_network(
    cls: type[PreTrainedModel], num_classes: int, settings: DetectorSettings, **arguments
) -> PreTrainedModel:
    """transformers' detector `cls` of the sizes of `settings`, on our backbone, which keeps norms that learn.

    Weights begin as in the official programs, but for the heads, which every detector has to begin itself.

    Raises:
        OptionError: settings that do not go together.
    """
    features = make_features(settings.backbone, settings.strides, settings.model_kwargs, settings.drop_path)
    if settings.d_model % settings.heads or settings.d_model % 4:
        raise OptionError(f"d_model: expected a multiple of 4 and of {settings.heads} heads, got {settings.d_model}")
    config = cls.config_class(
        backbone_config=_WidthsConfig(channels=features.channels),
        num_labels=num_classes,
        num_queries=settings.queries,
        d_model=settings.d_model,
        encoder_layers=settings.encoder_layers,
        decoder_layers=settings.decoder_layers,
        encoder_attention_heads=settings.heads,
        decoder_attention_heads=settings.heads,
        encoder_ffn_dim=settings.ffn,
        decoder_ffn_dim=settings.ffn,
        dropout=settings.dropout,
        # transformers leaves these two out.
        attention_dropout=settings.dropout,
        activation_dropout=settings.dropout,
        **arguments,
    )
    network = cls(config)
    network.model.encoder.dropout = 0.0  # of its input: one that the official programs do not have
    _begin_as_official(network)
    _put_features(network, features)
    return network


def _put_features(network: PreTrainedModel, features: Features) -> None:
    network.model.backbone.model = features


@torch.no_grad()
def _begin_as_official(network: PreTrainedModel) -> None:
    """PyTorch's own beginnings, and Xavier's for the matrices of the transformer.

    Not for deformable attention, which transformers begins as the official program does.
    """
    deformable = [m for m in network.modules() if type(m).__name__.endswith("MultiscaleDeformableAttention")]
    apart = {id(part) for module in deformable for part in module.modules()}
    for module in network.modules():
        if id(module) not in apart and hasattr(module, "reset_parameters"):
            module.reset_parameters()
    for part in (network.model.encoder, network.model.decoder):
        for module in part.modules():
            if id(module) not in apart and isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
        for module in part.modules():
            _begin_attention(module)


def _begin_attention(module: nn.Module) -> None:
    """As torch's MultiheadAttention, which has one (3 d, d) matrix for queries, keys and values, and no biases."""
    if isinstance(getattr(module, "o_proj", None), nn.Linear):
        nn.init.zeros_(module.o_proj.bias)
        packed = [getattr(module, f"{name}_proj", None) for name in "qkv"]
        if all(isinstance(layer, nn.Linear) for layer in packed):
            for layer in packed:
                nn.init.xavier_uniform_(layer.weight, gain=math.sqrt(0.5))
                nn.init.zeros_(layer.bias)


def begin_focal(layer: nn.Linear) -> None:
    """Every class begins with probability `PRIOR`, so that the many queries without an object do not drown the rest."""
    nn.init.constant_(layer.bias, -math.log((1 - PRIOR) / PRIOR))


class Float32Linear(nn.Linear):
    """In float32 under autocast too."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.float())


def keep_float32(module: nn.Module) -> None:
    """Turn the linear layers in `module` to `Float32Linear`: for what makes coordinates.

    With the 8 bits of bfloat16, a coordinate of 1,000 pixels is off by 2.
    """
    for layer in module.modules():
        if type(layer) is nn.Linear:
            layer.__class__ = Float32Linear
