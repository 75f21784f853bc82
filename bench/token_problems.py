# SPDX-License-Identifier: MIT
"""`fused_mlp` and `projection`, each with its residual, against plain PyTorch: 1×1 convolutions as in the release, or
linear layers, whichever is faster."""

from collections.abc import Callable
from dataclasses import dataclass

import floors
import torch.nn.functional as F
from names import COMPILED, EAGER
from op_problems import Inputs, OpProblem, backends, implementation, random_tensor
from torch import Tensor

from container_kernels import fused_mlp, projection

LINEAR = "eager by linear layers"


@dataclass(frozen=True)
class TokenProblem(OpProblem):
    """What both ops share: (B, N, C) tokens."""

    batch: int
    tokens: int
    channels: int

    @property
    def baselines(self) -> dict[str, tuple[str, ...]]:
        # Neither op has a CUDA C++ kernel.
        return {"eager": (EAGER, LINEAR), "torch.compile of eager": (COMPILED,)} | backends(self.device, "triton")

    def function(self, name: str) -> Callable[..., Tensor]:
        ours, convolutions, linear = self.implementations
        return linear if name == LINEAR else implementation(name, ours, convolutions)

    def inputs(self, seed: int) -> Inputs:
        leaves = {}
        for i, (name, shape) in enumerate(self.shapes.items()):
            spread = shape[-1] ** -0.5 if name.startswith("w") else 1.0
            leaves[name] = (random_tensor(shape, self, seed + i) * spread).requires_grad_(self.backward)
        out = (self.batch, self.tokens, self.outputs_per_token)
        return leaves, tuple(leaves.values()), {}, random_tensor(out, self, seed + len(leaves))


@dataclass(frozen=True)
class MlpProblem(TokenProblem):
    """x + mlp(x)."""

    ratio: int

    implementations = property(lambda self: (_our_mlp, _eager_mlp, _linear_mlp))
    outputs_per_token = property(lambda self: self.channels)
    kind = property(lambda self: f"fused_mlp {self.direction}")

    @property
    def name(self) -> str:
        return f"{self.kind}, {self.batch}×{self.tokens}, {self.channels} channels, ratio {self.ratio}"

    @property
    def kernels(self) -> list[floors.Cost]:
        rows = self.batch * self.tokens
        return [floors.mlp(rows, self.channels, self.channels * self.ratio, self.dtype.itemsize, self.backward)]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        channels, hidden = self.channels, self.channels * self.ratio
        x = (self.batch, self.tokens, channels)
        return {"x": x, "w1": (hidden, channels), "b1": (hidden,), "w2": (channels, hidden), "b2": (channels,)}


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
    def kernels(self) -> list[floors.Cost]:
        rows, itemsize = self.batch * self.tokens, self.dtype.itemsize
        return [floors.projection(rows, self.channels, self.out_channels, itemsize, self.backward, self.residual)]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        shapes = {
            "x": (self.batch, self.tokens, self.channels),
            "weight": (self.out_channels, self.channels),
            "bias": (self.out_channels,),
        }
        return shapes | ({"residual": (self.batch, self.tokens, self.out_channels)} if self.residual else {})


def _our_mlp(x: Tensor, *weights: Tensor, backend: str | None = None) -> Tensor:
    return fused_mlp(x, *weights, residual=True, backend=backend)


def _eager_mlp(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    return x + _convolution(F.gelu(_convolution(x, w1, b1)), w2, b2)


def _linear_mlp(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    return x + F.linear(F.gelu(F.linear(x, w1, b1)), w2, b2)


def _our_projection(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None = None, *, backend: str | None = None
) -> Tensor:
    return projection(x, weight, bias, residual=residual, backend=backend)


def _eager_projection(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None = None) -> Tensor:
    y = _convolution(x, weight, bias)
    return y if residual is None else residual + y


def _linear_projection(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None = None) -> Tensor:
    y = F.linear(x, weight, bias)
    return y if residual is None else residual + y


def _convolution(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """(B, N, C) as an image of one column in channels_last."""
    image = x.transpose(1, 2)[..., None]
    return F.conv2d(image, weight[:, :, None, None], bias)[..., 0].transpose(1, 2)
