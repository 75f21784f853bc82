# SPDX-License-Identifier: MIT
"""Ablation of inference: the network with more and more of it fused, timed alternately in one process.

    python -m bench.ablation                        container_light, batch 8, 224×224, float32, one thread
    python -m bench.ablation --model container --batch 2 --threads 2

Steps: the release in plain PyTorch; our aggregation and position embedding in between plain norms, 1×1 convolutions and
residuals; the fused MLP; norms folded and residuals joined, which is our network as it is trained; `fuse()`. With one
thread the time is that of the thread, so that other processes do not lengthen it. Medians; channels_last on all sides.
"""

import argparse
import sys
from collections.abc import Sequence
from types import MethodType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench import machine
from bench.names import EAGER, NOT_FUSED, OURS
from bench.problems.networks import ModelProblem
from bench.problems.sections import MODELS
from bench.timing import Contender, measure
from container_kernels import ContainerBlock, context_aggregation, fused_mlp, local_aggregation

STEPS = {
    EAGER: "the release in plain PyTorch, channels_last",
    "aggregation": "+ our aggregation and position embedding",
    "fused MLP": "+ fused MLP",
    NOT_FUSED: "+ norms folded, residuals joined",
    OURS: "+ deploy mode, fuse()",
}


def contenders(problem: ModelProblem) -> dict[str, Contender]:
    """A call of every step, in order; all have the same weights, and results are checked against plain PyTorch."""
    calls = {}
    for name in STEPS:
        network = problem.network(name if name in (EAGER, OURS) else NOT_FUSED)
        if name in ("aggregation", "fused MLP"):
            for block in network.modules():
                if isinstance(block, ContainerBlock):
                    block.forward = MethodType(_forward_with_fused_mlp if name == "fused MLP" else _forward, block)
        calls[name] = problem.calls(network, network)
        result = problem.outputs(name, calls[name]())["out"].double()
        expected = problem.outputs(EAGER, calls[EAGER]())["out"].double()
        error = ((result - expected).norm() / expected.norm()).item()
        if not error <= problem.tolerance:
            raise AssertionError(f"{name}: differs from eager by {error:.1e} (relative L2)")
    return calls


def _forward(block: ContainerBlock, x: Tensor) -> Tensor:
    """The block of two operations of ours, everything else plain."""
    x = _aggregated(block, x)
    mlp = block.mlp
    return x + _convolution(F.gelu(_convolution(block.norm2(x), mlp.fc1)), mlp.fc2)


def _forward_with_fused_mlp(block: ContainerBlock, x: Tensor) -> Tensor:
    x = _aggregated(block, x)
    fc1, fc2 = block.mlp.fc1, block.mlp.fc2
    y = fused_mlp(block.norm2(x).permute(0, 2, 3, 1), fc1.weight, fc1.bias, fc2.weight, fc2.bias)
    return x + y.permute(0, 3, 1, 2)


def _aggregated(block: ContainerBlock, x: Tensor) -> Tensor:
    x, layer = block.pos_embed(x), block.aggregation
    batch, channels, height, width = x.shape
    packed = _convolution(block.norm1(x), layer.in_proj).permute(0, 2, 3, 1)
    if layer.dynamic:
        heads = packed.reshape(batch, height * width, 3, layer.num_heads, layer.head_dim)
        alpha, beta = layer.mixing_weights()
        local = {"local_weight": layer.local_weight, "local_bias": layer.local_bias, "grid_size": (height, width)}
        y = context_aggregation(*heads.unbind(2), alpha=alpha, beta=beta, **local)
    else:
        y = local_aggregation(packed, layer.local_weight, layer.local_bias)
    image = y.view(batch, height, width, channels).permute(0, 3, 1, 2)
    return x + _convolution(image, layer.out_proj)


def _convolution(x: Tensor, layer: nn.Linear) -> Tensor:
    return F.conv2d(x, layer.weight[:, :, None, None], layer.bias)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    batches = {model: (on_gpu, on_cpu) for model, on_gpu, on_cpu, _ in MODELS}
    parser.add_argument("--model", choices=tuple(batches), default="container_light")
    parser.add_argument("--batch", type=int, default=None)
    parser.add_argument("--size", type=int, default=224, help="of the images")
    parser.add_argument("--threads", type=int, default=1, help="of a CPU")
    parser.add_argument("--device", choices=("cuda", "cpu"), default=machine.default_device())
    parser.add_argument("--seconds", type=float, default=60.0, help="to spend, about")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    batch = options.batch or batches[options.model][options.device == "cpu"]
    problem = ModelProblem(options.device, False, options.model, batch, options.size)
    for name, value in machine.conditions(options.device).items():
        print(f"{name}: {value}")
    steps = contenders(problem)
    measured = measure(steps, options.device, options.seconds)
    before = eager = measured.milliseconds[EAGER]
    print(f"\n{problem.name}; noise {100 * measured.noise:.1f} %\n")
    print(f"{'step':<45}{'ms':>10}{'images/s':>10}{'× the step before':>19}{'× eager':>10}")
    for name, what in STEPS.items():
        now = measured.milliseconds[name]
        print(f"{what:<45}{now:>10.1f}{1e3 * batch / now:>10.1f}{before / now:>19.2f}{eager / now:>10.2f}")
        before = now
    return 0


if __name__ == "__main__":
    sys.exit(main())
