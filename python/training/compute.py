# SPDX-License-Identifier: MIT
"""Device, autocast and memory layout of a run."""

from __future__ import annotations

import dataclasses
import functools

import torch


@dataclasses.dataclass(frozen=True)
class ImageFormat:
    """What a model expects of an image."""

    size: int
    crop_pct: float
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Compute:
    """The device of a rank, the dtype of its forward passes, the layout of its images."""

    device: torch.device
    dtype: torch.dtype
    memory_format: torch.memory_format

    def autocast(self) -> torch.autocast:
        """The context of every forward pass."""
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32)

    def normalize(self, images: torch.Tensor, image_format: ImageFormat) -> torch.Tensor:
        """Images of a loader, uint8 (B, 3, H, W) -> float32 on the device, by mean and deviation of the format."""
        images = images.to(self.device, non_blocking=True)
        images = images.to(torch.float32, memory_format=self.memory_format)
        mean, std = _statistics(image_format, self.device)
        return images.div_(255).sub_(mean).div_(std)


def make_compute(device: torch.device, amp_dtype: str | None, channels_last: bool) -> Compute:
    """Autocast to `amp_dtype`, or what the device suggests."""
    dtype = amp_dtype or default_dtype(device.type)
    return Compute(device, getattr(torch, dtype), torch.channels_last if channels_last else torch.contiguous_format)


def default_dtype(device_type: str) -> str:
    """Autocast to bfloat16 on a GPU and plain float32 on a CPU, unless told otherwise."""
    return "bfloat16" if device_type == "cuda" else "float32"


@functools.cache
def _statistics(image_format: ImageFormat, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation (1, 3, 1, 1), made once: copying them to a GPU in every step would wait for it."""
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (image_format.mean, image_format.std))
    return mean.to(device), std.to(device)
