# SPDX-License-Identifier: MIT
"""The released network in plain PyTorch: the baseline of the block and model rows.

Same parameter names, shapes and arithmetic as the release's `container_v1_light`, written as it is there: 1×1
convolutions, BatchNorm2d, exact GELU, attention by two matrix products and a softmax. Nothing is fused; images are
(B, C, H, W) and stay in `torch.channels_last` from end to end. Mixing blocks in all four stages are the paper's
CONTAINER. Stochastic depth is left out: the comparison is without it on both sides.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class PatchEmbed(nn.Module):
    """Convolution with kernel = stride, then LayerNorm over channels."""

    def __init__(self, in_chans: int, dim: int, patch: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.proj = nn.Conv2d(in_chans, dim, patch, patch)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvMlp(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(dim, hidden, 1)
        self.act = nn.GELU()
        self.fc2 = nn.Conv2d(hidden, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class StaticBlock(nn.Module):
    """Aggregation by a 5×5 depthwise convolution alone."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.pos_embed = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.norm1 = nn.BatchNorm2d(dim)
        self.conv1 = nn.Conv2d(dim, dim, 1)
        self.conv2 = nn.Conv2d(dim, dim, 1)
        self.attn = nn.Conv2d(dim, dim, 5, padding=2, groups=dim)
        self.norm2 = nn.BatchNorm2d(dim)
        self.mlp = ConvMlp(dim, int(dim * mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.pos_embed(x)
        x = x + self.conv2(self.attn(self.conv1(self.norm1(x))))
        return x + self.mlp(self.norm2(x))


class MixBlock(nn.Module):
    """Aggregation by attention and a 5×5 depthwise convolution, mixed by one gate."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = (dim // num_heads) ** -0.5
        self.pos_embed = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.norm1 = nn.BatchNorm2d(dim)
        self.conv1 = nn.Conv2d(dim, 3 * dim, 1)
        self.conv2 = nn.Conv2d(dim, dim, 1)
        self.conv = nn.Conv2d(dim, dim, 5, padding=2, groups=dim)
        self.sa_weight = nn.Parameter(torch.zeros(1))
        self.norm2 = nn.BatchNorm2d(dim)
        self.mlp = ConvMlp(dim, int(dim * mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.pos_embed(x)
        x = x + self.conv2(self.aggregate(self.conv1(self.norm1(x))))
        return x + self.mlp(self.norm2(x))

    def aggregate(self, packed: Tensor) -> Tensor:
        """(B, 3C, H, W) queries, keys, values to (B, C, H, W)."""
        batch, _, height, width = packed.shape
        values = packed.chunk(3, dim=1)[2]
        # (B, 3·M·D, N) -> three times (B, M, N, D)
        q, k, v = packed.flatten(2).view(batch, 3, self.num_heads, -1, height * width).transpose(3, 4).unbind(1)
        attention = (q @ k.transpose(-2, -1) * self.scale).softmax(dim=-1)
        dynamic = (attention @ v).transpose(1, 2).reshape(batch, height, width, -1).permute(0, 3, 1, 2)
        gate = self.sa_weight.sigmoid()
        return gate * dynamic + (1 - gate) * self.conv(values)


class ReleasedNetwork(nn.Module):
    """Four stages named `patch_embed1, blocks1, …`, classifier on the mean over the grid.

    Args:
        mixing: stages of `MixBlock`, numbered from 1; the release has the fourth alone.
        num_heads: heads of the mixing stages.
    """

    def __init__(
        self,
        mixing: Sequence[int] = (4,),
        dims: Sequence[int] = (64, 128, 320, 512),
        depths: Sequence[int] = (3, 4, 8, 3),
        num_heads: Sequence[int] = (2, 4, 10, 16),
        mlp_ratios: Sequence[float] = (8, 8, 4, 4),
        patches: Sequence[int] = (4, 2, 2, 2),
        num_classes: int = 1000,
    ) -> None:
        super().__init__()
        self.stages = len(dims)
        channels = 3
        for i, dim in enumerate(dims):
            kind = MixBlock if i + 1 in mixing else StaticBlock
            blocks = (kind(dim, num_heads[i], mlp_ratios[i]) for _ in range(depths[i]))
            self.add_module(f"patch_embed{i + 1}", PatchEmbed(channels, dim, patches[i]))
            self.add_module(f"blocks{i + 1}", nn.ModuleList(blocks))
            channels = dim
        self.norm = nn.BatchNorm2d(channels)
        self.head = nn.Linear(channels, num_classes)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        for i in range(1, self.stages + 1):
            x = getattr(self, f"patch_embed{i}")(x)
            for block in getattr(self, f"blocks{i}"):
                x = block(x)
        return self.head(self.norm(x).mean((2, 3)))
