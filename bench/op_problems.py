# SPDX-License-Identifier: MIT
"""The ops against plain PyTorch: `context_aggregation` (mix) and `local_aggregation` (depthwise)."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import floors
import torch
import torch.nn.functional as F
from contenders import TOLERANCE
from machine import bench_dtype
from names import BACKENDS, COMPILED, EAGER, OURS
from timing import Contender
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from container_kernels import context_aggregation, local_aggregation
from container_kernels.testing import MixCase, MixInputs, eager_context_aggregation, eager_local_aggregation

# Attention alone: what a fused mix is measured with where attention dominates.
SDPA = {
    "SDPA alone, flash": SDPBackend.FLASH_ATTENTION,
    "SDPA alone, memory efficient": SDPBackend.EFFICIENT_ATTENTION,
    "SDPA alone, cuDNN": SDPBackend.CUDNN_ATTENTION,
}
NATIVE = "eager without cuDNN"

# One problem's leaves by name, its function's arguments made of them, and the gradient of its output.
Inputs = tuple[dict[str, Tensor], tuple, dict[str, Any], Tensor]


@dataclass(frozen=True)
class OpProblem:
    """What both ops share: forward alone without gradients, or forward and backward by `torch.autograd.grad`."""

    device: str
    backward: bool

    @property
    def dtype(self) -> torch.dtype:
        return bench_dtype(self.device)

    @property
    def tolerance(self) -> float:
        return TOLERANCE[self.dtype]

    @property
    def direction(self) -> str:
        return "forward + backward" if self.backward else "forward"

    def outputs(self, name: str, result: dict[str, Tensor]) -> dict[str, Tensor]:
        return result

    def contender(self, name: str) -> Contender:
        function = self.function(name)

        def forward(inputs: Inputs) -> dict[str, Tensor]:
            _, positional, keywords, _ = inputs
            with torch.no_grad():
                return {"out": function(*positional, **keywords)}

        def forward_backward(inputs: Inputs) -> dict[str, Tensor]:
            leaves, positional, keywords, grad_out = inputs
            out = function(*positional, **keywords)
            grads = torch.autograd.grad(out, list(leaves.values()), grad_out, allow_unused=True)
            return {"out": out, **{f"gradient of {n}": g for n, g in zip(leaves, grads, strict=True)}}

        sets = [self.inputs(seed) for seed in range(_input_sets(self.kernels[0].bytes, self.device))]
        return Contender(forward_backward if self.backward else forward, sets)


@dataclass(frozen=True)
class MixProblem(OpProblem):
    """Attention and a 5×5 depthwise term on slices of one packed projection."""

    case: MixCase

    @property
    def name(self) -> str:
        case = self.case
        shape = f"{case.batch}×{case.height}×{case.width}, {case.channels} channels, {case.heads} heads"
        return f"mix {self.direction}, {shape}"

    @property
    def kind(self) -> str:
        return f"mix {self.direction}, N {'≤' if self.case.tokens <= 256 else '>'} 256"

    @property
    def kernels(self) -> list[floors.Cost]:
        case = self.case
        return [floors.mix(case.batch, case.tokens, case.channels, self.dtype.itemsize, self.backward)]

    @property
    def baselines(self) -> dict[str, tuple[str, ...]]:
        baselines = {"eager": (EAGER,), "torch.compile of eager": (COMPILED,)}
        if self.device == "cuda" and self.case.tokens > 256:
            baselines["fastest attention alone"] = tuple(SDPA)
        return baselines | backends(self.device, *BACKENDS.values())

    def function(self, name: str) -> Callable[..., Tensor]:
        if name in SDPA:
            return _attention_alone(SDPA[name])
        return implementation(name, context_aggregation, eager_context_aggregation)

    def outputs(self, name: str, result: dict[str, Tensor]) -> dict[str, Tensor]:
        return {} if name in SDPA else result

    def inputs(self, seed: int) -> Inputs:
        (q, k, v), keywords = _drawn(self.case, self.dtype, self.device, seed).clone().arguments()
        leaves = {"q": q, "k": k, "v": v}
        leaves |= {name: value for name, value in keywords.items() if isinstance(value, Tensor)}
        if self.backward:
            # The slices themselves are the leaves: gluing their gradients together is not part of the op.
            leaves = {name: leaf.detach().requires_grad_() for name, leaf in leaves.items()}
        q, k, v, *_ = leaves.values()
        keywords |= {name: leaf for name, leaf in leaves.items() if name in keywords}
        return leaves, (q, k, v), keywords, random_tensor(v.shape, self, seed)


@dataclass(frozen=True)
class DepthwiseProblem(OpProblem):
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
    def kernels(self) -> list[floors.Cost]:
        tokens = self.height * self.width
        return [floors.depthwise(self.batch, tokens, self.channels, self.kernel, self.dtype.itemsize, self.backward)]

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


def backends(device: str, *served_by: str) -> dict[str, tuple[str, ...]]:
    """Each of a GPU's backends that have the op, as a baseline of its own."""
    names = (name for name, backend in BACKENDS.items() if backend in served_by)
    return {name: (name,) for name in names} if device == "cuda" else {}


def implementation(name: str, ours: Callable, eager: Callable) -> Callable:
    """What a contender's name stands for, of an op that is ours and its equivalent in plain PyTorch."""
    if name == COMPILED:
        # Every problem compiles afresh: earlier shapes would count towards the recompilation limit.
        torch.compiler.reset()
        return torch.compile(eager, dynamic=False)
    if name in BACKENDS:
        return functools.partial(ours, backend=BACKENDS[name])
    return {OURS: ours, EAGER: eager}[name]


def _attention_alone(backend: SDPBackend) -> Callable[..., Tensor]:
    def attention(q: Tensor, k: Tensor, v: Tensor, *, scale: float, **_) -> Tensor:
        with sdpa_kernel(backend):
            heads_first = (t.transpose(1, 2) for t in (q, k, v))
            return F.scaled_dot_product_attention(*heads_first, scale=scale).transpose(1, 2)

    return attention


def _without_cudnn(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    with torch.backends.cudnn.flags(enabled=False):
        return eager_local_aggregation(x, weight, bias)


def _drawn(case: MixCase, dtype: torch.dtype, device: str, seed: int) -> MixInputs:
    """Inputs of one set: the same numbers in other places for every seed but 0."""
    inputs = _drawn_once(case, dtype, device)
    rolled = {name: leaf.roll(seed, 1) if leaf.dim() > 1 else leaf for name, leaf in inputs.leaves.items()}
    return replace(inputs, leaves=rolled)


@functools.lru_cache(maxsize=2)
def _drawn_once(case: MixCase, dtype: torch.dtype, device: str) -> MixInputs:
    """A CPU draws the numbers, which takes longer than everything that is timed."""
    return case.make(dtype, device)


def random_tensor(shape: tuple[int, ...], problem: OpProblem, seed: int) -> Tensor:
    """Normal numbers on the problem's device in its dtype."""
    generator = torch.Generator(problem.device).manual_seed(seed)
    return torch.randn(shape, generator=generator, device=problem.device, dtype=problem.dtype)


def _input_sets(bytes_moved: int, device: str) -> int:
    """Enough sets of inputs, and at least two, to fill three L2 caches of a GPU; one on a CPU."""
    if device == "cpu":
        return 1
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    return min(16, max(2, math.ceil(3 * cache / bytes_moved)))
