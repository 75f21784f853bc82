# SPDX-License-Identifier: MIT
"""`context_aggregation` (the mix) against plain PyTorch: scaled dot-product attention and a depthwise convolution."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench import roofline
from bench.names import BACKENDS, COMPILED, EAGER
from bench.problems.op_problem import Inputs, OpProblem, backends, implementation, random_tensor
from container_kernels import context_aggregation
from container_kernels.testing import MixCase, MixInputs, eager_context_aggregation

# Attention alone: what a fused mix is measured with where attention dominates.
SDPA = {
    "SDPA alone, flash": SDPBackend.FLASH_ATTENTION,
    "SDPA alone, memory efficient": SDPBackend.EFFICIENT_ATTENTION,
    "SDPA alone, cuDNN": SDPBackend.CUDNN_ATTENTION,
}


@dataclass(frozen=True)
class ContextAggregationProblem(OpProblem):
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
    def kernels(self) -> list[roofline.Cost]:
        case, itemsize = self.case, self.dtype.itemsize
        return [roofline.context_aggregation(case.batch, case.tokens, case.channels, itemsize, self.backward)]

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


def _attention_alone(backend: SDPBackend) -> Callable[..., Tensor]:
    def attention(q: Tensor, k: Tensor, v: Tensor, *, scale: float, **_) -> Tensor:
        with sdpa_kernel(backend):
            heads_first = (t.transpose(1, 2) for t in (q, k, v))
            return F.scaled_dot_product_attention(*heads_first, scale=scale).transpose(1, 2)

    return attention


def _drawn(case: MixCase, dtype: torch.dtype, device: str, seed: int) -> MixInputs:
    """Inputs of one set: the same numbers in other places for every seed but 0."""
    inputs = _drawn_once(case, dtype, device)
    rolled = {name: leaf.roll(seed, 1) if leaf.dim() > 1 else leaf for name, leaf in inputs.leaves.items()}
    return replace(inputs, leaves=rolled)


@functools.lru_cache(maxsize=2)
def _drawn_once(case: MixCase, dtype: torch.dtype, device: str) -> MixInputs:
    """A CPU draws the numbers, which takes longer than everything that is timed."""
    return case.make(dtype, device)
