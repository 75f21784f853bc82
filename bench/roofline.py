# SPDX-License-Identifier: MIT
"""Floors: the least time a device needs for what must be moved and computed.

    floor = max(bytes that must move / copy bandwidth, FLOPs / matrix rate)

A byte must move when it is an input or the output of a kernel that could hold everything else on chip. A network's
floor is the sum over such kernels: depthwise, projection (with the norm before it folded in), mix, MLP.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

import container_kernels
from bench.timing import fastest_seconds


@dataclass(frozen=True)
class Cost:
    """What one kernel, or several together, must do."""

    bytes: int
    flops: int


@dataclass(frozen=True)
class Rates:
    """What a device can do: bytes per second of a copy (read + write), FLOPs per second of a matrix product."""

    bandwidth: float
    flops: float
    source: str

    def floor_ms(self, kernels: Sequence[Cost]) -> float:
        """Milliseconds for the kernels one after the other."""
        return 1e3 * sum(max(k.bytes / self.bandwidth, k.flops / self.flops) for k in kernels)


def total(kernels: Sequence[Cost]) -> Cost:
    return Cost(sum(k.bytes for k in kernels), sum(k.flops for k in kernels))


# bfloat16, by the exact name that torch reports: other variants of a chip have other memory.
DEVICES = {
    "NVIDIA H100 80GB HBM3": Rates(3.0e12, 800e12, "measured on an H100: copy 3.0 TB/s, bfloat16 800 TFLOP/s"),
    "NVIDIA H200": Rates(4.3e12, 790e12, "measured on an H200: copy 4.3 TB/s, bfloat16 790 TFLOP/s"),
}


def rates(name: str, device: str, dtype: torch.dtype) -> Rates:
    """The table's rates for a device of this name, else those measured here and now."""
    if dtype == torch.bfloat16 and name in DEVICES:
        return DEVICES[name]
    return measured_rates(device, dtype)


def measured_rates(device: str, dtype: torch.dtype) -> Rates:
    """Rates of a copy and of a matrix product of random numbers, timed here and now."""
    # Far beyond any cache, and long enough to time.
    elements, side = (2**28, 8192) if device == "cuda" else (2**25, 1024)
    source = torch.randn(elements, device=device, dtype=dtype)
    target = torch.empty_like(source)
    bandwidth = 2 * source.nbytes / fastest_seconds(lambda: target.copy_(source), device)
    matrix = torch.randn(side, side, device=device, dtype=dtype)
    products = [lambda: matrix @ matrix]
    if device == "cpu":
        # PyTorch's library reaches half of what some processors can: theirs would not be a floor.
        products.append(lambda: container_kernels.projection(matrix, matrix))
    flops = 2 * side**3 / min(fastest_seconds(product, device) for product in products)
    what = f"copy {bandwidth / 1e9:.3g} GB/s, {str(dtype).removeprefix('torch.')} product {flops / 1e9:.3g} GFLOP/s"
    return Rates(bandwidth, flops, f"measured in this run: {what}")


def context_aggregation(batch: int, tokens: int, channels: int, itemsize: int, backward: bool) -> Cost:
    """The mix: q, k, v in, y out; backward q, k, v, grad_y in, three gradients out.

    Two matrix products of 2·B·N²·C FLOPs forward, five backward (scores once more). The local term comes free.
    """
    activation = batch * tokens * channels * itemsize
    products = 2 + 5 * backward
    return Cost((4 + 7 * backward) * activation, products * 2 * batch * tokens**2 * channels)


def local_aggregation(batch: int, tokens: int, channels: int, kernel: int, itemsize: int, backward: bool) -> Cost:
    """Depthwise: x in, y out; backward x, grad_y in, grad_x out, the weight gradient in the same reading."""
    activation = batch * tokens * channels * itemsize
    return Cost((2 + 3 * backward) * activation, (1 + 2 * backward) * 2 * kernel**2 * batch * tokens * channels)


def projection(
    rows: int, inputs: int, outputs: int, itemsize: int, backward: bool, residual: bool = False, grad_x: bool = True
) -> Cost:
    """Linear layer over `rows` tokens: x (and the residual) in, y out; backward x, grad_y in, grad_x out if wanted.

    A residual's gradient is grad_y itself. Weights are left out of the bytes: they are small against activations.
    """
    moved = inputs + outputs + residual * outputs + backward * ((1 + grad_x) * inputs + outputs)
    return Cost(moved * rows * itemsize, (1 + backward * (1 + grad_x)) * 2 * rows * inputs * outputs)


def fused_mlp(rows: int, channels: int, hidden: int, itemsize: int, backward: bool) -> Cost:
    """Norm, MLP and residual in one kernel: x in, y out; backward x, grad_y in, grad_x out, hidden layer on chip.

    Backward computes the hidden layer once more: five products of this size beside the forward's two.
    """
    products = 2 + 5 * backward
    return Cost((2 + 3 * backward) * rows * channels * itemsize, products * 2 * rows * channels * hidden)


def deformable_attention(
    batch: int, pixels: int, queries: int, heads: int, head_dim: int, points: int, itemsize: int, backward: bool
) -> Cost:
    """Value, locations and weights (float32) in, the result out; backward value, grad_out, locations and weights in,
    three gradients out.

    `points`: of a query and head, on all levels. Each has four pixels to multiply, whose gradients are one product of
    this size and whose sums another. What caches must deliver is far more: four pixels per point.
    """
    value, result = (batch * rows * heads * head_dim * itemsize for rows in (pixels, queries))
    sampling = 3 * 4 * batch * queries * heads * points
    moved = value + result + sampling + backward * (2 * value + result + 2 * sampling)
    return Cost(moved, (1 + 2 * backward) * 2 * 4 * batch * queries * heads * points * head_dim)


def block(
    batch: int, tokens: int, channels: int, ratio: float, dynamic: bool, kernel: int, itemsize: int, backward: bool
) -> Iterator[Cost]:
    """The kernels of one CONTAINER block: position embedding, projection, aggregation, projection, MLP."""
    rows = batch * tokens
    yield local_aggregation(batch, tokens, channels, 3, itemsize, backward)
    yield projection(rows, channels, (3 if dynamic else 1) * channels, itemsize, backward)
    if dynamic:
        yield context_aggregation(batch, tokens, channels, itemsize, backward)
    else:
        yield local_aggregation(batch, tokens, channels, kernel, itemsize, backward)
    yield projection(rows, channels, channels, itemsize, backward, residual=True)
    yield fused_mlp(rows, channels, int(channels * ratio), itemsize, backward)


def adamw(parameters: int) -> Cost:
    """One optimizer step in float32: parameter, gradient and two moments in, parameter and moments out."""
    return Cost(7 * 4 * parameters, 0)
