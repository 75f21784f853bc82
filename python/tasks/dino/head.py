# SPDX-License-Identifier: MIT
"""The projection head of DINO."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPSILON = 1e-6  # of a norm, large enough for 16 bits


class DINOHead(nn.Module):
    """Features (N, in_dim) to logits (N, out_dim): an MLP of three layers, L2, products with prototypes of norm 1.

    Args:
        in_dim, out_dim: channels of the features; number of prototypes.
        hidden_dim, bottleneck_dim: channels of the two hidden layers and of the third, whose output is normalized.
        use_bn: batch norms after the hidden layers.
        norm_last_layer: the prototypes keep norm 1; otherwise each has a learned one, which begins at 1.

    The prototypes are normalized where they are used, and not by `weight_norm`: the head can be copied, averaged,
    compiled and replicated as any other module.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int = 65536,
        hidden_dim: int = 2048,
        bottleneck_dim: int = 256,
        use_bn: bool = False,
        norm_last_layer: bool = True,
    ):
        super().__init__()
        layers: list[nn.Module] = []
        for inputs in (in_dim, hidden_dim):
            layers += [nn.Linear(inputs, hidden_dim), *([nn.BatchNorm1d(hidden_dim)] if use_bn else []), nn.GELU()]
        self.mlp = nn.Sequential(*layers, nn.Linear(hidden_dim, bottleneck_dim))
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        self.prototypes = nn.Parameter(nn.Linear(bottleneck_dim, out_dim, bias=False).weight.detach())
        self.prototype_norms = None if norm_last_layer else nn.Parameter(torch.ones(out_dim, 1))

    def forward(self, x: Tensor) -> Tensor:
        prototypes = F.normalize(self.prototypes, dim=-1, eps=EPSILON)
        if self.prototype_norms is not None:
            prototypes = prototypes * self.prototype_norms
        return F.linear(F.normalize(self.mlp(x), dim=-1, eps=EPSILON), prototypes)

    def last_layer(self) -> list[nn.Parameter]:
        """The parameters after the bottleneck, which are frozen at first."""
        return [self.prototypes, *([] if self.prototype_norms is None else [self.prototype_norms])]
