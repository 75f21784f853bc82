# SPDX-License-Identifier: MIT
"""Base class of the problems of one op: forward alone, or forward and backward, on several sets of inputs."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench.machine import bench_dtype
from bench.names import BACKENDS, COMPILED, EAGER, OURS
from bench.problems.problem import TOLERANCE
from bench.timing import Contender

# One problem's leaves by name, its function's arguments made of them, and the gradient of its output.
Inputs = tuple[dict[str, Tensor], tuple, dict[str, Any], Tensor]


@dataclass(frozen=True)
class OpProblem:
    """One op: forward alone without gradients, or forward and backward by `torch.autograd.grad`."""

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
