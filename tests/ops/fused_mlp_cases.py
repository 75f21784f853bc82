"""Inputs of the fused MLP, and its comparison with float64."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from backends import DEVICES

from container_kernels import fused_mlp
from container_kernels.testing import assert_within_budget, eager_fused_mlp, poisoned_outputs


class Case(NamedTuple):
    tokens: tuple[int, ...]  # (B, …)
    channels: int
    hidden: int
    out_channels: int
    residual: bool = False
    scaled: bool = False
    bias: bool = True

    def __str__(self) -> str:
        options = [name for name in ("residual", "scaled") if getattr(self, name)] + ["no_bias"] * (not self.bias)
        return "-".join(["x".join(map(str, self.tokens)), *map(str, self[1:4]), *options])


# Token counts in no multiple of a tile; the narrow ones have tiles that are mostly padding.
CASES = [
    Case((2, 5, 7), 64, 512, 64, residual=True, scaled=True),
    Case((3, 19), 20, 37, 33, scaled=True),
    Case((2, 9), 37, 100, 37, residual=True),
    Case((70,), 3, 5, 20),
    Case((1, 1), 64, 64, 1, bias=False),
    Case((4, 1), 1, 1, 1, residual=True, scaled=True, bias=False),
    Case((1, 3, 2, 3), 200, 1, 130, bias=False),
    Case((2, 9), 130, 70, 130, residual=True),
]


LONG = Case((3, 300), 16, 40, 16, residual=True, scaled=True)


def make(case, dtype, device):
    """Leaves by name, in `dtype`, so that every implementation sees the same numbers; and the factors of samples."""
    leaves = {
        "x": torch.randn(*case.tokens, case.channels),
        "w1": torch.randn(case.hidden, case.channels) * case.channels**-0.5,
        "b1": torch.randn(case.hidden) if case.bias else None,
        "w2": torch.randn(case.out_channels, case.hidden) * case.hidden**-0.5,
        "b2": torch.randn(case.out_channels) if case.bias else None,
    }
    leaves = {name: None if t is None else t.to(device, dtype).requires_grad_() for name, t in leaves.items()}
    return leaves, drop_path_mask(case.tokens[0], dtype, device) if case.scaled else None


def drop_path_mask(samples, dtype, device):
    """What stochastic depth of probability 0.1 draws: every second sample is dropped, from the first on."""
    return ((torch.arange(samples, device=device) % 2) / 0.9).to(dtype)


# So few sums that eager's error is luck.
FEW = 8


def promoted(leaves):
    return {name: None if t is None else t.detach().double().requires_grad_() for name, t in leaves.items()}


def random_gradient(out):
    """The same numbers in every dtype."""
    return torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).bfloat16().to(out)


def run(function, leaves, grad_out=None, **options):
    """(result, gradients by name) of ⟨result, grad_out⟩, by default of random numbers."""
    out = function(**leaves, **options)
    if grad_out is None:
        grad_out = random_gradient(out)
    wanted = {name: t for name, t in leaves.items() if t is not None and t.requires_grad}
    return out, dict(zip(wanted, torch.autograd.grad(out, list(wanted.values()), grad_out), strict=True))


def terms_of_the_output(leaves, mask):
    """What is rounded on the way to the only number of an output, bias and residual left out: the second layer's
    partial sums, added one after the other, and the first one's, by what they move the output."""
    x, w1, b1, w2, _ = promoted(leaves).values()
    hidden = F.linear(x, w1, b1)
    second = F.gelu(hidden) * w2
    (slope,) = torch.autograd.grad(second.sum(), hidden)
    first = slope.reshape(-1, 1) * w1 * x.flatten()
    terms = torch.cat([second.flatten().cumsum(0), first.cumsum(1).flatten()]).detach()
    return terms if mask is None else terms * mask


def terms_of_b1(leaves, mask):
    """The sums over tokens that the gradient of b1 passes through, one token after the other, of the largest unit."""
    x, w1, b1, w2, _ = promoted(leaves).values()
    hidden = F.linear(x, w1, b1)
    out = F.gelu(hidden) @ w2.t()
    if mask is not None:
        out = out * mask.view(-1, *[1] * (out.ndim - 1))
    (terms,) = torch.autograd.grad(out, hidden, random_gradient(out))
    sums = terms.flatten(0, -2).cumsum(0)
    return sums[:, sums.norm(dim=0).argmax()]


def assert_matches_float64(backend, dtype, case):
    leaves, mask = make(case, dtype, DEVICES[backend])
    exact_mask = None if mask is None else mask.double()
    exact, exact_grads = run(
        fused_mlp, promoted(leaves), residual=case.residual, sample_scale=exact_mask, backend="reference"
    )
    eager, eager_grads = run(eager_fused_mlp, leaves, residual=case.residual, sample_scale=mask)
    with poisoned_outputs():
        out, grads = run(fused_mlp, leaves, residual=case.residual, sample_scale=mask, backend=backend)
    assert out.dtype == dtype and out.is_contiguous()
    summed = terms_of_the_output(leaves, exact_mask) if exact.numel() == 1 else None
    assert_within_budget("out", out, eager, exact, summed=summed)
    for name in exact_grads:
        assert grads[name].dtype == dtype
        summed = terms_of_b1(leaves, exact_mask) if name == "b1" and grads[name].numel() <= FEW else None
        assert_within_budget(f"gradient of {name}", grads[name], eager_grads[name], exact_grads[name], summed=summed)
