# SPDX-License-Identifier: MIT
"""`local_aggregation` against plain PyTorch: a convolution with one group per channel."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bench import roofline
from bench.names import BACKENDS, COMPILED, EAGER
from bench.problems.op_problem import Inputs, OpProblem, backends, implementation, random_tensor
from container_kernels import local_aggregation
from container_kernels.testing import eager_local_aggregation

NATIVE = "eager without cuDNN"


@dataclass(frozen=True)
class LocalAggregationProblem(OpProblem):
    """Depthwise kernel × kernel convolution with bias of a (B, H, W, C) image."""

    batch: int
    height: int
    width: int
    channels: int
    kernel: int

    @property
    def name(self) -> str:
        shape = f"{self.batch}×{self.height}×{self.width}, {self.channels} channels"
        return f"depthwise {self.kernel}×{self.kernel} {self.direction}, {shape}"

    @property
    def kind(self) -> str:
        return f"depthwise {self.direction}"

    @property
    def kernels(self) -> list[roofline.Cost]:
        tokens, itemsize = self.height * self.width, self.dtype.itemsize
        return [roofline.local_aggregation(self.batch, tokens, self.channels, self.kernel, itemsize, self.backward)]

    @property
    def baselines(self) -> dict[str, tuple[str, ...]]:
        eager = (EAGER, NATIVE) if self.device == "cuda" else (EAGER,)
        return {"eager": eager, "torch.compile of eager": (COMPILED,)} | backends(self.device, *BACKENDS.values())

    def function(self, name: str) -> Callable[..., Tensor]:
        if name == NATIVE:
            return _without_cudnn
        return implementation(name, local_aggregation, eager_local_aggregation)

    def inputs(self, seed: int) -> Inputs:
        shape = (self.batch, self.height, self.width, self.channels)
        leaves = {
            "x": random_tensor(shape, self, seed),
            "weight": random_tensor((self.channels, self.kernel, self.kernel), self, seed + 1) / self.kernel,
            "bias": random_tensor((self.channels,), self, seed + 2),
        }
        for leaf in leaves.values():
            leaf.requires_grad_(self.backward)
        return leaves, tuple(leaves.values()), {}, random_tensor(shape, self, seed + 3)


def _without_cudnn(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    with torch.backends.cudnn.flags(enabled=False):
        return eager_local_aggregation(x, weight, bias)
