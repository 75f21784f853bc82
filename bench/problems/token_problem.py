# SPDX-License-Identifier: MIT
"""Base class of the problems of `fused_mlp` and `projection`, each with its residual, on (B, N, C) tokens.

Eager is the faster of 1×1 convolutions, as in the release, and linear layers.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from bench.names import COMPILED, EAGER
from bench.problems.op_problem import Inputs, OpProblem, backends, implementation, random_tensor

LINEAR = "eager by linear layers"


@dataclass(frozen=True)
class TokenProblem(OpProblem):
    """An op on (B, N, C) tokens."""

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


def convolution(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """(B, N, C) as an image of one column in channels_last."""
    image = x.transpose(1, 2)[..., None]
    return F.conv2d(image, weight[:, :, None, None], bias)[..., 0].transpose(1, 2)
