# SPDX-License-Identifier: MIT
"""`deformable_attention` against `grid_sample` per level, at the sizes of Deformable DETR."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bench import roofline
from bench.names import BACKENDS, COMPILED, EAGER, ORIGINAL
from bench.problems.op_problem import Inputs, OpProblem, backends, implementation, random_tensor
from container_kernels import deformable_attention
from container_kernels.testing import eager_deformable_attention

# An image's height and width -> the four levels that a backbone and a stride-2 convolution make of it.
LEVELS = {
    (400, 600): ((50, 75), (25, 38), (13, 19), (7, 10)),
    (800, 1333): ((100, 167), (50, 84), (25, 42), (13, 21)),
}
HEADS, HEAD_DIM, POINTS = 8, 32, 4
# Pixels of its level, on average, that a query looks away from its reference: about as initialized, 1 to 4.
SPREAD = 2.0


@dataclass(frozen=True)
class DeformableAttentionProblem(OpProblem):
    """8 heads of 32 channels, 4 points on each of 4 levels. `queries`: None for one per pixel, as in the encoder."""

    batch: int
    image: tuple[int, int]
    queries: int | None = None

    @property
    def levels(self) -> tuple[tuple[int, int], ...]:
        return LEVELS[self.image]

    @property
    def pixels(self) -> int:
        return sum(height * width for height, width in self.levels)

    @property
    def kind(self) -> str:
        return f"deformable_attention {'decoder' if self.queries else 'encoder'} {self.direction}"

    @property
    def name(self) -> str:
        height, width = self.image
        return f"{self.kind}, {self.batch}×{height}×{width}, {self.queries or self.pixels} queries"

    @property
    def kernels(self) -> list[roofline.Cost]:
        queries, points = self.queries or self.pixels, len(self.levels) * POINTS
        sizes = (self.batch, self.pixels, queries, HEADS, HEAD_DIM, points, self.dtype.itemsize)
        return [roofline.deformable_attention(*sizes, self.backward)]

    @property
    def baselines(self) -> dict[str, tuple[str, ...]]:
        names = {"eager": (EAGER,), "torch.compile of eager": (COMPILED,)}
        if self.device == "cuda":
            names[ORIGINAL] = (ORIGINAL,)
        return names | backends(self.device, *BACKENDS.values())

    def function(self, name: str) -> Callable[..., Tensor]:
        if name == ORIGINAL:
            return _original
        return implementation(name, deformable_attention, eager_deformable_attention)

    def inputs(self, seed: int) -> Inputs:
        value = random_tensor((self.batch, self.pixels, HEADS, HEAD_DIM), self, seed)
        reference = self._reference_points(seed + 1)
        queries, levels = reference.shape[0], len(self.levels)
        shape = (self.batch, queries, HEADS, levels, POINTS)
        offsets = random_tensor((*shape, 2), self, seed + 2).float() * SPREAD
        sides = torch.tensor([(width, height) for height, width in self.levels], device=self.device)
        leaves = {
            "value": value,
            "sampling_locations": reference[:, None, None, None] + offsets / sides[:, None],
            "attention_weights": random_tensor(shape, self, seed + 3).float().flatten(3).softmax(-1).view(shape),
        }
        for leaf in leaves.values():
            leaf.requires_grad_(self.backward)
        value, locations, weights = leaves.values()
        grad_out = random_tensor((self.batch, queries, HEADS, HEAD_DIM), self, seed + 4)
        return leaves, (value, list(self.levels), locations, weights), {}, grad_out

    def _reference_points(self, seed: int) -> Tensor:
        """(Q, 2) float32: the middle of every pixel, or anywhere."""
        if self.queries:
            generator = torch.Generator(self.device).manual_seed(seed)
            return torch.rand(self.queries, 2, generator=generator, device=self.device)
        grids = []
        for height, width in self.levels:
            rows = (torch.arange(height, device=self.device) + 0.5) / height
            columns = (torch.arange(width, device=self.device) + 0.5) / width
            grids.append(torch.cartesian_prod(rows, columns).flip(1))
        return torch.cat(grids)


def _original(value: Tensor, sizes: list[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
    # Imported here: it needs Triton.
    from bench.problems.original_deformable_attention import original_deformable_attention

    return original_deformable_attention(value, sizes, locations, weights)
