# SPDX-License-Identifier: MIT
"""Detectors of `python/detect.py` on `container_light`, and the same ones on its plain twin, the released network.

Sizes are those of papers. A training step is forward, losses, backward, AdamW; for inference our backbone is fused.
"""

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from bench.names import EAGER, OURS
from bench.problems.released_network import ReleasedNetwork
from container_kernels.models.key_mapping import translated

sys.path.append(str(Path(__file__).parents[2] / "python"))  # programs are run from there, and not installed
from timm.utils import reparameterize_model

from tasks.detection.detectors import build_detector, preset
from tasks.detection.detectors.backbone import Features

DETECTORS = ("retinanet", "mask-rcnn", "deformable-detr")
CLASSES = 80
OBJECTS = 8  # of an image
STRIDES = (4, 8, 16, 32)


class PlainBody(ReleasedNetwork):
    """The released network as a timm backbone: the features of `strides`."""

    def __init__(self, strides: tuple[int, ...]) -> None:
        super().__init__()
        self.strides = strides
        del self.norm, self.head
        for stage in range(STRIDES.index(max(strides)) + 2, self.stages + 1):
            delattr(self, f"patch_embed{stage}")
            delattr(self, f"blocks{stage}")

    def forward(self, x: Tensor) -> list[Tensor]:
        features = []
        for stage, stride in enumerate(STRIDES, 1):
            if stride > max(self.strides):
                break
            x = getattr(self, f"patch_embed{stage}")(x)
            for block in getattr(self, f"blocks{stage}"):
                x = block(x)
            if stride in self.strides:
                features.append(x)
        return features


@dataclasses.dataclass(frozen=True)
class DetectorProblem:
    """A detector's inference or training step on images of side × side, noise with boxes."""

    detector: str
    training: bool
    batch: int
    side: int

    @property
    def name(self) -> str:
        what = "training step" if self.training else "inference"
        return f"{self.detector} {what}, batch {self.batch}, {self.side}×{self.side}"

    def network(self, name: str) -> nn.Module:
        """The detector on our backbone (`OURS`) or on the plain one (`EAGER`), with the same weights."""
        torch.manual_seed(0)
        settings = dataclasses.replace(preset("coco", self.detector), drop_path=0.0)
        detector = build_detector(self.detector, CLASSES, settings)
        plain = PlainBody(settings.strides)
        features = next(module for module in detector.modules() if isinstance(module, Features))
        if name == EAGER:
            features.body = plain
        else:
            weights = translated(plain.state_dict())
            own = features.body.state_dict()
            # timm's networks of features join the numbers of a path.
            features.body.load_state_dict({_place(name, own): tensor for name, tensor in weights.items()})
        detector = detector.to(memory_format=torch.channels_last).train(self.training)
        return reparameterize_model(detector) if name == OURS and not self.training else detector

    def calls(self, network: nn.Module) -> Callable[[], dict[str, Tensor] | list]:
        """The call that is timed."""
        generator = torch.Generator().manual_seed(1)
        images = [torch.randn(3, self.side, self.side, generator=generator) for _ in range(self.batch)]
        if not self.training:
            return torch.no_grad()(lambda: network(images))
        targets = [self._objects(generator) for _ in images]
        trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-5, weight_decay=1e-4)

        def step() -> dict[str, Tensor]:
            optimizer.zero_grad()
            torch.manual_seed(2)  # what is sampled is the same
            losses = network(images, targets)
            sum(losses.values()).backward()
            optimizer.step()
            return {name: loss.detach() for name, loss in losses.items()}

        return step

    def _objects(self, generator: torch.Generator) -> dict[str, Tensor]:
        corners = torch.rand(OBJECTS, 2, generator=generator) * self.side / 2
        sides = (0.1 + 0.4 * torch.rand(OBJECTS, 2, generator=generator)) * self.side
        boxes = torch.cat([corners, corners + sides], 1)
        masks = torch.zeros(OBJECTS, self.side, self.side, dtype=torch.uint8)
        for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist(), strict=True):
            mask[top:bottom, left:right] = 1
        objects = {"boxes": boxes, "labels": torch.randint(CLASSES, (OBJECTS,), generator=generator)}
        return {**objects, "masks": masks} if self.detector == "mask-rcnn" else objects


def _place(name: str, own: dict[str, Tensor]) -> str:
    return name if name in own else name.replace("stages.", "stages_", 1)
