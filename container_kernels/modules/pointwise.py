# SPDX-License-Identifier: MIT
"""Layers that work on each pixel alone: the projection and the MLP."""

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_module
from torch import Tensor, nn


@register_notrace_module  # torch.fx keeps the layer whole
class Pointwise(nn.Linear):
    """A linear layer over the channels of an image, the same as a 1×1 convolution; parameters as in `nn.Linear`.

    Shape: (B, in_features, H, W) to (B, out_features, H, W); the result is in `torch.channels_last`, and nothing is
    copied when the input is too.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu" and x.dtype != torch.float64:
            # The convolution library has the faster matrix product on many CPUs (twice as fast on AMD's); it has
            # none in float64.
            x = x.contiguous(memory_format=torch.channels_last)
            y = F.conv2d(x, self.weight[:, :, None, None], self.bias)
            return y.contiguous(memory_format=torch.channels_last)  # it is, but for images of one channel
        return F.linear(x.permute(0, 2, 3, 1), self.weight, self.bias).permute(0, 3, 1, 2)


class PointwiseMlp(nn.Module):
    """Two pointwise layers with an activation between; dropout after each.

    Shape: (B, dim, H, W) to (B, dim, H, W).
    """

    def __init__(
        self,
        dim: int,
        hidden_dim: int,
        act_layer: type[nn.Module] = nn.GELU,
        drop: float = 0.0,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        self.fc1 = Pointwise(dim, hidden_dim, device=device, dtype=dtype)
        self.act = act_layer()
        self.drop1 = nn.Dropout(drop)
        self.fc2 = Pointwise(hidden_dim, dim, device=device, dtype=dtype)
        self.drop2 = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop1(self.act(self.fc1(x)))
        return self.drop2(self.fc2(x))
