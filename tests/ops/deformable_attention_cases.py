"""Inputs of deformable attention, and its comparison with float64."""

import math
from typing import NamedTuple

import torch
from backends import INTERPRETED, backends_and_dtypes

from container_kernels import deformable_attention
from container_kernels.testing import assert_within_budget, eager_deformable_attention, poisoned_outputs

# Locations lie so far from pixel centres, in pixels, that no rounding moves one across: the gradient jumps there.
MARGIN = 0.05


class Case(NamedTuple):
    batch: int
    sizes: tuple[tuple[int, int], ...]
    queries: int
    heads: int
    head_dim: int
    points: int

    @property
    def pixels(self) -> int:
        return sum(height * width for height, width in self.sizes)

    def __str__(self) -> str:
        sizes = "+".join(f"{height}x{width}" for height, width in self.sizes)
        return f"{self.batch}-{sizes}-q{self.queries}-{self.heads}x{self.head_dim}-p{self.points}"


CASES = [
    Case(2, ((6, 5), (3, 3)), 7, 2, 16, 4),
    Case(1, ((1, 1),), 1, 1, 1, 1),
    Case(1, ((4, 9), (2, 5), (1, 3), (1, 1)), 13, 3, 32, 2),
    Case(2, ((5, 7),), 40, 1, 33, 3),
    Case(1, ((3, 3), (2, 2)), 5, 2, 256, 1),
    Case(1, ((9, 8),), 70, 8, 8, 5),
    Case(3, ((2, 3), (1, 2)), 3, 5, 3, 1),
]


# One of an aligned head, one of a padded one: what 16 bits change in Triton's kernels.
OF_ANY_DTYPE = (CASES[0], CASES[3])


def served():
    """(backend, dtype, case); in Triton's interpreter, which takes seconds, only a few of 16 bits."""
    return [
        (backend, dtype, case)
        for backend, dtype in backends_and_dtypes()
        for case in CASES
        if not (INTERPRETED and backend == "triton" and dtype != torch.float32 and case not in OF_ANY_DTYPE)
    ]


def draw_locations(case: Case, dtype: torch.dtype) -> torch.Tensor:
    """(B, Q, M, L, P, 2): in the map, at its edge and a little outside; one in ten far away."""
    levels = [_level_locations((case.batch, case.queries, case.heads, case.points), size, dtype) for size in case.sizes]
    locations = torch.stack(levels, dim=3)
    far = torch.rand(locations.shape[:-1]) < 0.1
    distance = torch.tensor([1e3, -1e3, 40.0, -40.0])
    locations[far] = distance[torch.randint(len(distance), (int(far.sum()), 2))].to(dtype)
    return locations


def _level_locations(shape, size, dtype) -> torch.Tensor:
    sides = torch.tensor(size[::-1], dtype=torch.float64)
    locations = torch.full((*shape, 2), math.nan, dtype=torch.float64)
    for _ in range(200):
        pixel = locations * sides - 0.5
        bad = ~((pixel - pixel.round()).abs() >= MARGIN)
        if not bad.any():
            return locations.to(dtype)
        drawn = (torch.rand((*shape, 2), dtype=torch.float64) * (sides + 3) - 2 + 0.5) / sides
        locations = torch.where(bad, drawn.to(dtype).double(), locations)
    raise AssertionError("no locations away from pixel centres")


def make(case: Case, dtype, device, sampling_dtype=None) -> dict[str, torch.Tensor]:
    """Leaves by name; locations and weights in `sampling_dtype`, by default `dtype`."""
    sampling_dtype = sampling_dtype or dtype
    shape = (case.batch, case.queries, case.heads, len(case.sizes), case.points)
    leaves = {
        "value": torch.randn(case.batch, case.pixels, case.heads, case.head_dim).to(dtype),
        "sampling_locations": draw_locations(case, sampling_dtype),
        "attention_weights": torch.randn(shape).flatten(3).softmax(-1).view(shape).to(sampling_dtype),
    }
    return {name: leaf.to(device).requires_grad_() for name, leaf in leaves.items()}


def promoted(leaves):
    return {name: leaf.detach().double().requires_grad_() for name, leaf in leaves.items()}


def random_gradient(out):
    """The same numbers in every dtype."""
    return torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).bfloat16().to(out)


def run(function, case: Case, leaves, grad_out=None, **options):
    """(out, gradients by name) of ⟨out, grad_out⟩, by default a random one."""
    out = function(spatial_shapes=list(case.sizes), **leaves, **options)
    grad_out = random_gradient(out) if grad_out is None else grad_out
    grads = torch.autograd.grad(out, list(leaves.values()), grad_out)
    return out, dict(zip(leaves, grads, strict=True))


def assert_matches_float64(case, leaves, backend, *, factor=2.0):
    """Result and gradients, about as exact as `grid_sample`, from poisoned outputs."""
    exact, exact_grads = run(deformable_attention, case, promoted(leaves), backend="reference")
    eager, eager_grads = run(eager_deformable_attention, case, leaves)
    with poisoned_outputs():
        out, grads = run(deformable_attention, case, leaves, backend=backend)
    assert out.dtype == leaves["value"].dtype and out.is_contiguous()
    assert_within_budget("out", out, eager, exact, factor=factor)
    # Gradients of a point are one sum over channels.
    terms = random_gradient(out).float().norm(dim=-1).max() * leaves["value"].detach().float().abs().max()
    widest = max(max(size) for size in case.sizes)
    summed = {"value": None, "sampling_locations": terms * widest, "attention_weights": terms}
    for name, grad in grads.items():
        assert grad.dtype == leaves[name].dtype
        assert_within_budget(
            f"gradient of {name}", grad, eager_grads[name], exact_grads[name], factor=factor, summed=summed[name]
        )


def random_case(draw, *, most_head_dim=40, most_queries=60) -> Case:
    """Anything that may be asked for, small, from a `random.Random`."""
    sizes = tuple((draw.randint(1, 9), draw.randint(1, 9)) for _ in range(draw.randint(1, 5)))
    return Case(
        draw.randint(1, 3),
        sizes,
        draw.randint(1, most_queries),
        draw.randint(1, 5),
        draw.randint(1, most_head_dim),
        draw.randint(1, 6),
    )
