"""Inputs of the projection, and its comparison with float64."""

from typing import NamedTuple

import torch
from backends import DEVICES
from fused_mlp_cases import drop_path_mask, promoted

from container_kernels import projection, projection_with_statistics
from container_kernels.ops.common.tensors import accumulation_dtype
from container_kernels.testing import assert_within_budget, eager_projection, poisoned_outputs


class Case(NamedTuple):
    tokens: tuple[int, ...]  # (B, …)
    channels: int
    out_channels: int
    residual: bool = False
    scaled: bool = False
    bias: bool = True

    def __str__(self) -> str:
        options = [name for name in ("residual", "scaled") if getattr(self, name)] + ["no_bias"] * (not self.bias)
        return "-".join(["x".join(map(str, self.tokens)), *map(str, self[1:3]), *options])


# Token counts in no multiple of a tile; the narrow ones have tiles that are mostly padding.
CASES = [
    Case((2, 5, 7), 64, 64, residual=True, scaled=True),
    Case((3, 19), 20, 37, scaled=True),
    Case((2, 9), 37, 100, residual=True),
    Case((70,), 3, 20, scaled=True, residual=True),
    Case((1, 1), 64, 1, bias=False),
    Case((4, 1), 1, 1, residual=True, scaled=True, bias=False),
    Case((1, 3, 2, 3), 300, 130),
    Case((2, 9), 70, 320),
]


# As many rows as a kernel has in a tile, at most.
TILE = 128


LONG = Case((3, 300), 16, 40, residual=True, scaled=True)


def make(case, dtype, device):
    """Leaves by name, in `dtype`, so that every implementation sees the same numbers; and the factors of samples."""
    leaves = {
        "x": torch.randn(*case.tokens, case.channels),
        "weight": torch.randn(case.out_channels, case.channels) * case.channels**-0.5,
        "bias": torch.randn(case.out_channels) if case.bias else None,
        "residual": torch.randn(*case.tokens, case.out_channels) if case.residual else None,
    }
    leaves = {name: None if t is None else t.to(device, dtype).requires_grad_() for name, t in leaves.items()}
    return leaves, drop_path_mask(case.tokens[0], dtype, device) if case.scaled else None


def statistics_of(out, dtype=None):
    """What plain PyTorch sums in `dtype`, by default the accumulation dtype."""
    rows = out.to(dtype or accumulation_dtype(out.dtype)).flatten(0, -2)
    return rows.sum(0), rows.square().sum(0)


def eager_with_statistics(**arguments):
    out = eager_projection(**arguments)
    return out, *statistics_of(out)


def random_gradients(results):
    random = torch.Generator().manual_seed(1)
    return [torch.randn(t.shape, generator=random).bfloat16().to(t) for t in results]


def run(function, leaves, grads_out=None, **options):
    """(results, gradients by name) of Σ ⟨result, its gradient⟩, by default random ones."""
    results = function(**leaves, **options)
    results = results if isinstance(results, tuple) else (results,)
    wanted = {name: t for name, t in leaves.items() if t is not None and t.requires_grad}
    grads = torch.autograd.grad(results, list(wanted.values()), grads_out or random_gradients(results))
    return results, dict(zip(wanted, grads, strict=True))


def assert_statistics_of(out, channel_sum, channel_square_sum):
    """The sums are those of `out` as it is, about as exactly as PyTorch sums them."""
    out = out.detach()
    wide = out.double().flatten(0, -2)
    for name, sums, eager, exact, terms in zip(
        ("channel_sum", "channel_square_sum"),
        (channel_sum, channel_square_sum),
        statistics_of(out),
        statistics_of(out, torch.float64),
        (wide, wide.square()),
        strict=True,
    ):
        assert sums.dtype == accumulation_dtype(out.dtype)
        worst = terms[:, terms.norm(dim=0).argmax()]
        # Within a tile of rows a kernel may add one after the other, and Triton's interpreter does; among tiles not.
        running = torch.cat([rows.cumsum(0) for rows in worst.split(TILE)])
        assert_within_budget(name, sums, eager, exact, summed=running)


def assert_statistics_match_float64(backend, dtype, case):
    """The same output, its sums, and the gradients through all three."""
    leaves, mask = make(case, dtype, DEVICES[backend])
    exact_mask = None if mask is None else mask.double()
    _, exact_grads = run(projection_with_statistics, promoted(leaves), sample_scale=exact_mask, backend="reference")
    _, eager_grads = run(eager_with_statistics, leaves, sample_scale=mask)
    with poisoned_outputs():
        (out, *sums), grads = run(projection_with_statistics, leaves, sample_scale=mask, backend=backend)
    assert out.is_contiguous()
    assert torch.equal(out, projection(**leaves, sample_scale=mask, backend=backend))
    assert_statistics_of(out, *sums)
    for name in exact_grads:
        assert grads[name].dtype == dtype
        assert_within_budget(f"gradient of {name}", grads[name], eager_grads[name], exact_grads[name])
