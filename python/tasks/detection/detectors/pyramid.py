# SPDX-License-Identifier: MIT
"""What torchvision's detectors share here: a feature pyramid on our backbones, and images that come prepared."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock

from tasks.detection.detectors.backbone import make_features
from tasks.detection.detectors.settings import DetectorSettings
from training.errors import OptionError

NORMS = {"none": None, "batch": nn.BatchNorm2d}
PADDED_TO = 32  # pixels; a multiple of every stride that a backbone has


class Pyramid(nn.Module):
    """Images (B, 3, H, W) to maps of `out_channels` by name, "0" the finest: torchvision's contract of a backbone."""

    def __init__(self, settings: DetectorSettings, coarser: ExtraFPNBlock | None):
        super().__init__()
        if settings.fpn_norm not in NORMS:
            raise OptionError(f"fpn_norm: expected one of {', '.join(NORMS)}, got {settings.fpn_norm!r}")
        self.features = make_features(settings.backbone, settings.strides, settings.model_kwargs, settings.drop_path)
        self.out_channels = settings.fpn_channels
        self.fpn = FeaturePyramidNetwork(
            self.features.channels, self.out_channels, coarser, norm_layer=NORMS[settings.fpn_norm]
        )

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        return self.fpn(OrderedDict((str(level), x) for level, x in enumerate(self.features(images))))


class PreparedImages(GeneralizedRCNNTransform):
    """Images that are normalized and of their final size: they are only padded and put in one batch."""

    def __init__(self):
        super().__init__(min_size=0, max_size=0, image_mean=[], image_std=[], size_divisible=PADDED_TO)

    def normalize(self, image: Tensor) -> Tensor:
        return image

    def resize(self, image: Tensor, target: dict | None = None) -> tuple[Tensor, dict | None]:
        return image, target


def make_anchors(settings: DetectorSettings, levels: int) -> AnchorGenerator:
    """Raises OptionError unless there are sizes for every level, as many for each."""
    sizes = settings.anchor_sizes
    if len(sizes) != levels or len(set(map(len, sizes))) != 1:
        raise OptionError(f"anchor_sizes: expected {levels} tuples, one a level, of equal length, got {sizes}")
    return AnchorGenerator(sizes, (settings.anchor_ratios,) * levels)
