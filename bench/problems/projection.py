# SPDX-License-Identifier: MIT
"""`projection`, with a residual where it has as many channels out as in, against plain PyTorch."""

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from bench import roofline
from bench.problems.token_problem import TokenProblem, convolution
from container_kernels import projection


@dataclass(frozen=True)
class ProjectionProblem(TokenProblem):
    """A linear layer to `out_channels`, with a residual where those are `channels`."""

    out_channels: int

    outputs_per_token = property(lambda self: self.out_channels)
    kind = property(lambda self: f"projection {self.direction}")
    residual = property(lambda self: self.out_channels == self.channels)

    @property
    def name(self) -> str:
        what = f"{self.channels} to {self.out_channels} channels{' and residual' if self.residual else ''}"
        return f"{self.kind}, {self.batch}×{self.tokens}, {what}"

    @property
    def implementations(self) -> tuple[Callable, Callable, Callable]:
        return _our_projection, _eager_projection, _linear_projection

    @property
    def kernels(self) -> list[roofline.Cost]:
        rows, itemsize = self.batch * self.tokens, self.dtype.itemsize
        return [roofline.projection(rows, self.channels, self.out_channels, itemsize, self.backward, self.residual)]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        shapes = {
            "x": (self.batch, self.tokens, self.channels),
            "weight": (self.out_channels, self.channels),
            "bias": (self.out_channels,),
        }
        return shapes | ({"residual": (self.batch, self.tokens, self.out_channels)} if self.residual else {})


def _our_projection(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None = None, *, backend: str | None = None
) -> Tensor:
    return projection(x, weight, bias, residual=residual, backend=backend)


def _eager_projection(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None = None) -> Tensor:
    y = convolution(x, weight, bias)
    return y if residual is None else residual + y


def _linear_projection(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None = None) -> Tensor:
    y = F.linear(x, weight, bias)
    return y if residual is None else residual + y
