# SPDX-License-Identifier: MIT
"""Networks of one resolution against timm's, which compute the same from the same weights."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import timm
from torch import nn

from bench import roofline
from bench.problems.networks import ModelProblem

# Ours -> timm's.
BASELINES = {"deit_small": "deit_small_patch16_224", "mixer": "mixer_b16_224"}


@dataclass(frozen=True)
class IsotropicProblem(ModelProblem):
    """DeiT-S or MLP-Mixer-B/16: inference, or a training step."""

    @property
    def kernels(self) -> list[roofline.Cost]:
        network, itemsize = timm.create_model(self.model, img_size=self.size, device="meta"), self.dtype.itemsize
        rows, patch, dim = math.prod(network.grid_size), 3 * math.prod(network.patch_size), network.embed_dim
        # The image needs no gradient.
        kernels = [roofline.projection(self.batch * rows, patch, dim, itemsize, self.training, grad_x=False)]
        for block in network.blocks:
            kernels += self._block(block, network.num_prefix_tokens + rows, dim)
        kernels.append(roofline.projection(self.batch, dim, 1000, itemsize, self.training))
        if self.training:
            kernels.append(roofline.adamw(sum(p.numel() for p in network.parameters())))
        return kernels

    def _block(self, block: nn.Module, tokens: int, dim: int) -> Iterator[roofline.Cost]:
        rows, itemsize, training = self.batch * tokens, self.dtype.itemsize, self.training
        aggregation = block.aggregation
        if aggregation.dynamic:
            yield roofline.projection(rows, dim, 3 * dim, itemsize, training)
            yield roofline.context_aggregation(self.batch, tokens, dim, itemsize, training)
            yield roofline.projection(rows, dim, dim, itemsize, training, residual=True)
        else:
            hidden_tokens = aggregation.token_mlp.w1.shape[1]
            yield roofline.fused_mlp(self.batch * dim, tokens, hidden_tokens, itemsize, training)
        yield roofline.fused_mlp(rows, dim, block.mlp.fc1.out_features, itemsize, training)

    def released(self) -> nn.Module:
        return timm.create_model(BASELINES[self.model], img_size=self.size)

    def ours(self) -> nn.Module:
        return timm.create_model(self.model, img_size=self.size)
