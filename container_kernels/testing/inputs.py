# SPDX-License-Identifier: MIT
"""Inputs of context aggregation for tests and benchmarks."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class MixCase:
    """One problem: batch × (height·width) tokens × heads × head_dim, and which terms it has."""

    batch: int = 2
    height: int = 5
    width: int = 6
    heads: int = 2
    head_dim: int = 16
    kernel: tuple[int, int] | None = (5, 5)
    dense: bool = False
    dynamic: bool = True
    packed: bool = True

    @property
    def tokens(self) -> int:
        return self.height * self.width

    @property
    def channels(self) -> int:
        return self.heads * self.head_dim

    def __str__(self) -> str:
        terms = [f"local{self.kernel[0]}x{self.kernel[1]}"] if self.kernel else []
        terms += ["dense"] if self.dense else []
        terms += ["dynamic"] if self.dynamic else []
        shape = f"{self.batch}x{self.height}x{self.width}x{self.heads}x{self.head_dim}"
        return "-".join([shape, *terms, *([] if self.packed else ["unpacked"])])

    def make(self, dtype: torch.dtype, device: str = "cpu", seed: int = 0, *, grad: bool = False) -> "MixInputs":
        """Random inputs, all in `dtype`, so that every implementation sees the same numbers.

        Scores have standard deviation about 1.5, so the softmax is neither flat nor a single spike.
        """
        generator = torch.Generator().manual_seed(seed)

        def randn(*shape: int, std: float = 1.0) -> Tensor:
            values = torch.randn(shape, generator=generator, dtype=torch.float64) * std
            return values.to(dtype).to(device).requires_grad_(grad)

        shape = (self.batch, self.tokens, 3 if self.dynamic else 1, self.heads, self.head_dim)
        if self.packed:
            packed = randn(*shape)
            leaves = {"packed": packed}
        else:
            packed = None
            leaves = {name: randn(*shape[:2], *shape[3:]) for name in ("qkv" if self.dynamic else "v")}
        leaves["alpha"] = randn(self.heads)
        leaves["beta"] = randn(self.heads)
        if self.kernel:
            kh, kw = self.kernel
            leaves["local_weight"] = randn(self.channels, kh, kw, std=(kh * kw) ** -0.5)
            leaves["local_bias"] = randn(self.channels)
        if self.dense:
            leaves["affinity"] = randn(self.heads, self.tokens, self.tokens, std=max(self.tokens, 1) ** -0.5)
        grid_size = (self.height, self.width) if self.kernel else None
        return MixInputs(leaves, grid_size, 1.5 * self.head_dim**-0.5)


@dataclass(frozen=True)
class MixInputs:
    """Leaf tensors of one problem; `arguments` turns them into those of `context_aggregation`."""

    leaves: dict[str, Tensor]
    grid_size: tuple[int, int] | None
    scale: float

    def arguments(self) -> tuple[tuple[Tensor | None, ...], dict[str, Any]]:
        """((q, k, v), keyword arguments); packed projections are handed over as their slices, without a copy."""
        named = dict(self.leaves)
        if "packed" in named:
            slices = named.pop("packed").unbind(2)
        else:
            slices = tuple(named.pop(name) for name in ("q", "k", "v") if name in named)
        qkv = slices if len(slices) == 3 else (None, None, *slices)
        return qkv, {**named, "grid_size": self.grid_size, "scale": self.scale}

    def double(self) -> "MixInputs":
        """The same numbers in float64, as new leaves."""
        leaves = {n: t.detach().double().requires_grad_(t.requires_grad) for n, t in self.leaves.items()}
        return replace(self, leaves=leaves)

    def clone(self) -> "MixInputs":
        """The same numbers as new leaves."""
        leaves = {n: t.detach().clone().requires_grad_(t.requires_grad) for n, t in self.leaves.items()}
        return replace(self, leaves=leaves)

    def gradients(self, out: Tensor, grad_out: Tensor) -> dict[str, Tensor]:
        """Gradients of ⟨out, grad_out⟩ for every leaf that `out` depends on."""
        names = list(self.leaves)
        grads = torch.autograd.grad(out, [self.leaves[n] for n in names], grad_out.to(out.dtype), allow_unused=True)
        return {name: grad for name, grad in zip(names, grads, strict=True) if grad is not None}
