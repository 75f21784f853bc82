# SPDX-License-Identifier: MIT
"""`fused_mlp` with its residual against plain PyTorch."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from bench import roofline
from bench.problems.token_problem import TokenProblem, convolution
from container_kernels import fused_mlp


@dataclass(frozen=True)
class FusedMlpProblem(TokenProblem):
    """x + mlp(x)."""

    ratio: int

    implementations = property(lambda self: (_our_mlp, _eager_mlp, _linear_mlp))
    outputs_per_token = property(lambda self: self.channels)
    kind = property(lambda self: f"fused_mlp {self.direction}")

    @property
    def name(self) -> str:
        return f"{self.kind}, {self.batch}×{self.tokens}, {self.channels} channels, ratio {self.ratio}"

    @property
    def kernels(self) -> list[roofline.Cost]:
        rows = self.batch * self.tokens
        return [roofline.fused_mlp(rows, self.channels, self.channels * self.ratio, self.dtype.itemsize, self.backward)]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        channels, hidden = self.channels, self.channels * self.ratio
        x = (self.batch, self.tokens, channels)
        return {"x": x, "w1": (hidden, channels), "b1": (hidden,), "w2": (channels, hidden), "b2": (channels,)}


def _our_mlp(x: Tensor, *weights: Tensor, backend: str | None = None) -> Tensor:
    return fused_mlp(x, *weights, residual=True, backend=backend)


def _eager_mlp(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    return x + convolution(F.gelu(convolution(x, w1, b1)), w2, b2)


def _linear_mlp(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    return x + F.linear(F.gelu(F.linear(x, w1, b1)), w2, b2)
