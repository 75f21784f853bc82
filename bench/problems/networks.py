# SPDX-License-Identifier: MIT
"""The block and the models against the released network in plain PyTorch, `torch.channels_last` on both sides.

On a GPU under autocast to bfloat16, on a CPU in float32. Inference of ours is that of the fused network (`fuse()`). A
training step is forward, cross entropy, backward, AdamW, without stochastic depth.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench import roofline
from bench.machine import COMPILE_MODES, bench_dtype
from bench.names import COMPILED, EAGER, NOT_FUSED, OURS
from bench.problems.problem import TOLERANCE
from bench.problems.released_network import MixBlock, ReleasedNetwork, StaticBlock
from bench.timing import Contender
from container_kernels import ContainerBlock
from container_kernels.models.key_mapping import translated

DIMS, DEPTHS, HEADS, RATIOS, STRIDES = (64, 128, 320, 512), (3, 4, 8, 3), (2, 4, 10, 16), (8, 8, 4, 4), (4, 2, 2, 2)
MIXING_STAGES = {"container_light": (4,), "container": (1, 2, 3, 4)}

# Results by a common name, and gradients by the parameter's own.
Result = tuple[dict[str, Tensor], dict[str, Tensor]]


@dataclass(frozen=True)
class NetworkProblem:
    """A block or a model: evaluation without gradients, or training with batch statistics."""

    device: str
    training: bool

    @property
    def dtype(self) -> torch.dtype:
        return bench_dtype(self.device)

    @property
    def baselines(self) -> dict[str, tuple[str, ...]]:
        not_fused = {} if self.training else {NOT_FUSED: (NOT_FUSED,)}
        return {"eager": (EAGER,), "torch.compile of eager": (COMPILED,)} | not_fused

    def contender(self, name: str) -> Contender:
        module = self.network(name)
        called = module
        if name == COMPILED:
            torch.compiler.reset()  # earlier shapes would count towards the recompilation limit
            called = torch.compile(module, dynamic=False, mode=COMPILE_MODES[self.device])
        return self.calls(module, called)

    def network(self, name: str) -> nn.Module:
        """The network or block of a contender, the same weights for every name."""
        torch.manual_seed(0)
        module = self.released()
        _randomize(module)
        if name in (OURS, NOT_FUSED):
            ours = self.ours()
            ours.load_state_dict(_our_names(module.state_dict()))
            module = ours
        module = module.to(self.device, memory_format=torch.channels_last).train(self.training)
        return module.fuse() if name == OURS and not self.training else module

    def calls(self, module: nn.Module, called: Callable[[Tensor], Tensor]) -> Contender:
        """The call that is timed: an evaluation or a step of `module` through `called`, itself or compiled from it."""
        torch.manual_seed(1)
        # Two images, since contenders with several inputs are timed as CUDA graphs: launches would be timed otherwise.
        images = [self.image() for _ in range(2 if self.device == "cuda" else 1)]
        return Contender(self.step(module, called) if self.training else self.evaluation(called), images)

    def evaluation(self, called: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Result]:
        def evaluate(image: Tensor) -> Result:
            with torch.no_grad(), self.autocast():
                return {"out": called(image)}, {}

        return evaluate

    def outputs(self, name: str, result: Result) -> dict[str, Tensor]:
        named, gradients = result
        if gradients:
            gradients = gradients if name in (OURS, NOT_FUSED) else _our_names(gradients)
            # One vector: a bias that a norm removes has rounding noise for a gradient.
            named = named | {"gradients": torch.cat([gradients[n].flatten() for n in sorted(gradients)])}
        return named

    def autocast(self) -> AbstractContextManager:
        return torch.autocast("cuda", torch.bfloat16) if self.device == "cuda" else nullcontext()

    def random_image(self, *shape: int, dtype: torch.dtype) -> Tensor:
        return torch.randn(shape, device=self.device, dtype=dtype).to(memory_format=torch.channels_last)


@dataclass(frozen=True)
class BlockProblem(NetworkProblem):
    """One block of a stage, numbered from 1: forward, or forward and backward."""

    stage: int
    mixing: bool
    batch: int
    grid: int

    tolerance = property(lambda self: TOLERANCE[self.dtype])
    dim = property(lambda self: DIMS[self.stage - 1])
    num_heads = property(lambda self: HEADS[self.stage - 1])
    mlp_ratio = property(lambda self: RATIOS[self.stage - 1])

    @property
    def name(self) -> str:
        what = "mixing" if self.mixing else "static"
        return f"{what} {self.kind}, {self.batch}×{self.grid}×{self.grid}, {self.dim} channels"

    @property
    def kind(self) -> str:
        return "block forward + backward" if self.training else "block forward"

    @property
    def kernels(self) -> list[roofline.Cost]:
        return list(
            roofline.block(
                self.batch, self.grid**2, self.dim, self.mlp_ratio, self.mixing, 5, self.dtype.itemsize, self.training
            )
        )

    def released(self) -> nn.Module:
        return (MixBlock if self.mixing else StaticBlock)(self.dim, self.num_heads, self.mlp_ratio)

    def ours(self) -> nn.Module:
        return ContainerBlock(self.dim, self.num_heads, self.mlp_ratio, dynamic=self.mixing)

    def image(self) -> Tensor:
        image = self.random_image(self.batch, self.dim, self.grid, self.grid, dtype=self.dtype)
        return image.requires_grad_(self.training)

    def step(self, module: nn.Module, called: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Result]:
        named = dict(module.named_parameters())
        grad_out = self.random_image(self.batch, self.dim, self.grid, self.grid, dtype=self.dtype)

        def forward_backward(image: Tensor) -> Result:
            with self.autocast():
                out = called(image)
            grad_image, *grads = torch.autograd.grad(out, [image, *named.values()], grad_out.to(out.dtype))
            return {"out": out, "gradient of x": grad_image}, dict(zip(named, grads, strict=True))

        return forward_backward


@dataclass(frozen=True)
class ModelProblem(NetworkProblem):
    """A whole network: inference, or a training step."""

    model: str
    batch: int
    size: int

    # Rounding differences grow over 18 blocks, with batch statistics most.
    tolerance = property(lambda self: 5 * TOLERANCE[self.dtype])

    @property
    def name(self) -> str:
        return f"{self.kind}, batch {self.batch}, {self.size}×{self.size}"

    @property
    def kind(self) -> str:
        return f"{self.model} {'training step' if self.training else 'inference'}"

    @property
    def kernels(self) -> list[roofline.Cost]:
        kernels, inputs, grid = [], 3, self.size
        itemsize, training = self.dtype.itemsize, self.training
        for i, dim in enumerate(DIMS):
            patch, grid = STRIDES[i] ** 2 * inputs, grid // STRIDES[i]
            # The image needs no gradient.
            kernels.append(roofline.projection(self.batch * grid**2, patch, dim, itemsize, training, grad_x=i > 0))
            dynamic = i + 1 in MIXING_STAGES[self.model]
            block = roofline.block(self.batch, grid**2, dim, RATIOS[i], dynamic, 5, itemsize, training)
            kernels += DEPTHS[i] * list(block)
            inputs = dim
        kernels.append(roofline.projection(self.batch, inputs, 1000, itemsize, training))
        if training:
            kernels.append(roofline.adamw(sum(p.numel() for p in self.released().parameters())))
        return kernels

    def released(self) -> nn.Module:
        return ReleasedNetwork(MIXING_STAGES[self.model], DIMS, DEPTHS, HEADS, RATIOS, STRIDES)

    def ours(self) -> nn.Module:
        return timm.create_model(self.model)

    def image(self) -> Tensor:
        return self.random_image(self.batch, 3, self.size, self.size, dtype=torch.float32)

    @property
    def optimizer_options(self) -> dict[str, bool]:
        # With the step counters on the GPU a CUDA graph can hold the whole step.
        return {"capturable": True} if self.device == "cuda" else {}

    def step(self, module: nn.Module, called: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Result]:
        named = dict(module.named_parameters())
        optimizer = torch.optim.AdamW(module.parameters(), lr=5e-4, weight_decay=0.05, **self.optimizer_options)
        labels = torch.randint(1000, (self.batch,), device=self.device)

        def train(image: Tensor) -> Result:
            optimizer.zero_grad()
            with self.autocast():
                loss = F.cross_entropy(called(image), labels)
            loss.backward()
            optimizer.step()
            return {"loss": loss.detach()}, {name: parameter.grad for name, parameter in named.items()}

        return train


def _randomize(module: nn.Module) -> None:
    """Statistics, gates and what starts as zeros as after training: at first some mistakes would not show."""
    for name, tensor in module.state_dict().items():
        if name.endswith("running_mean"):
            tensor.normal_(0, 0.1)
        elif name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5)
        elif name.endswith("sa_weight"):
            tensor.normal_()
        elif tensor.is_floating_point() and not tensor.any():
            tensor.normal_(0, 0.02)


def _our_names(released: dict[str, Tensor]) -> dict[str, Tensor]:
    """A released network's or a single block's tensors under our names, in our shapes."""
    if any(name.startswith("blocks") for name in released):
        return translated(released)
    renamed = translated({f"blocks1.0.{name}": tensor for name, tensor in released.items()})
    return {name.removeprefix("stages.0.blocks.0."): tensor for name, tensor in renamed.items()}
