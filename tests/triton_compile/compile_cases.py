"""Calls of the Triton backends that can be compiled without a GPU: what is asked for, and the launch of it."""

from dataclasses import dataclass
from typing import ClassVar

import torch

# GPUs that are served, by compute capability, and the bytes of shared memory that a block of theirs may have.
SHARED_MEMORY = {80: 163 << 10, 86: 99 << 10, 89: 99 << 10, 90: 227 << 10, 100: 227 << 10, 120: 99 << 10}


def torch_dtype(name: str) -> torch.dtype:
    """The dtype of a case; "tf32" is float32 where torch multiplies it on tensor cores."""
    torch.backends.cuda.matmul.fp32_precision = "tf32" if name == "tf32" else "ieee"
    return torch.float32 if name == "tf32" else getattr(torch, name)


@dataclass(frozen=True)
class Case:
    """Kernels for one kind of GPU; `ops` are those that it launches."""

    ops: ClassVar[tuple[str, ...]]
    capability: int
    dtype: str

    @property
    def has_products_on_tensor_cores(self) -> bool:
        return self.dtype != "float32"


@dataclass(frozen=True)
class MixCase(Case):
    """Forward and backward of the mix on slices of a packed projection and of its gradient, batch 4."""

    ops: ClassVar = ("context_aggregation",)
    height: int
    width: int
    head_dim: int
    heads: int = 4
    window: tuple[int, int] = (0, 0)
    dense: bool = False

    def __str__(self):
        window = f"-{self.window[0]}x{self.window[1]}" if self.window[0] else ""
        sizes = f"{self.height}x{self.width}-{self.heads}x{self.head_dim}"
        return f"sm{self.capability}-mix-{sizes}-{self.dtype}{window}{'-dense' if self.dense else ''}"

    def launch(self) -> None:
        from container_kernels.ops.context_aggregation import triton as backend
        from container_kernels.ops.context_aggregation.inputs import MixArguments, MixGradients

        n, heads, dim = self.height * self.width, self.heads, self.head_dim
        dtype = torch_dtype(self.dtype)
        (q, k, v), (grad_q, grad_k, grad_v) = (t.unbind(2) for t in torch.empty(2, 4, n, 3, heads, dim, dtype=dtype))
        out, grad_out = torch.empty(2, 4, n, heads, dim, dtype=dtype)
        alpha, grad_alpha = torch.empty(2, heads)
        logsumexp = torch.empty(4, heads, n)
        weight = bias = None
        grid = (0, 0)
        if self.window[0]:
            weight, bias = torch.empty(heads * dim, *self.window), torch.empty(heads * dim)
            grid = (self.height, self.width)
        affinity = torch.empty(heads, n, n) if self.dense else None
        inputs = MixArguments(q, k, v, alpha, weight, bias, affinity, *grid, 0.2)
        backend.forward(inputs, out, logsumexp)
        backend.backward(inputs, grad_out, logsumexp, MixGradients(grad_q, grad_k, grad_v, grad_alpha))


@dataclass(frozen=True)
class LocalAggregationCase(Case):
    """Forward, without and with statistics, and weight gradient of a batch of 32 images."""

    ops: ClassVar = ("local_aggregation",)
    height: int
    width: int
    channels: int
    window: tuple[int, int]

    def __str__(self):
        sizes = f"{self.height}x{self.width}-{self.channels}"
        return f"sm{self.capability}-depthwise-{sizes}-{self.dtype}-{self.window[0]}x{self.window[1]}"

    def launch(self) -> None:
        from container_kernels.ops.local_aggregation import triton as backend

        shape = (32, self.height, self.width, self.channels)
        x, out = torch.empty(2, *shape, dtype=torch_dtype(self.dtype))
        weight, bias = torch.empty(self.channels, *self.window), torch.empty(self.channels)
        backend.forward(x, weight, bias, out=out)
        backend.forward_with_moments(x, weight, bias, out=out, channel_sum=bias, channel_m2=bias)
        backend.backward_weight(out, x, grad_weight=weight, grad_bias=bias)


@dataclass(frozen=True)
class ProductCase(Case):
    """The MLP, forward and backward, then the projection, without and with statistics, of 32 samples of 49 tokens;
    `full`: with sample_scale and, where it fits, a residual."""

    ops: ClassVar = ("projection", "fused_mlp")
    channels: int
    hidden: int
    out_channels: int
    full: bool = True

    def __str__(self):
        sizes = f"{self.channels}-{self.hidden}-{self.out_channels}"
        return f"sm{self.capability}-mlp-{sizes}-{self.dtype}{'' if self.full else '-bare'}"

    @property
    def aligned(self) -> bool:
        """Whether every row of every matrix starts at a multiple of 16 elements, as Triton sees it."""
        return all(size % 16 == 0 for size in (self.channels, self.hidden, self.out_channels))

    def launch(self) -> None:
        from container_kernels.ops.fused_mlp import triton as mlp
        from container_kernels.ops.fused_mlp.inputs import MlpArguments, MlpGradients
        from container_kernels.ops.projection import triton as projection
        from container_kernels.ops.projection.inputs import ProjectionArguments

        dtype = torch_dtype(self.dtype)
        channels, hidden, out_channels = self.channels, self.hidden, self.out_channels
        x, grad_x = torch.empty(2, 32, 49, channels, dtype=dtype)
        out, grad_out = torch.empty(2, 32, 49, out_channels, dtype=dtype)
        w1, grad_w1 = torch.empty(2, hidden, channels, dtype=dtype)
        w2, grad_w2 = torch.empty(2, out_channels, hidden, dtype=dtype)
        b1, grad_b1 = torch.empty(2, hidden)
        b2, grad_b2 = torch.empty(2, out_channels)
        scale = torch.empty(32) if self.full else None
        residual = self.full and channels == out_channels
        inputs = MlpArguments(x, w1, b1, w2, b2, scale, residual)
        mlp.forward(inputs, out)
        mlp.backward(inputs, grad_out, MlpGradients(grad_x, grad_w1, grad_b1, grad_w2, grad_b2))
        weight = torch.empty(out_channels, channels, dtype=dtype)
        inputs = ProjectionArguments(x, weight, b2, grad_out if self.full else None, scale)
        projection.forward(inputs, out)
        projection.forward_with_moments(inputs, out, b2, grad_b2)


@dataclass(frozen=True)
class NormCase(Case):
    """What a batch norm is made of: folded into a layer of twice as many channels by statistics and by mean and
    variance, its gradient, tracking, the gradient of the statistics."""

    ops: ClassVar = ("fold_norm", "statistics")
    channels: int

    def __str__(self):
        return f"sm{self.capability}-norm-{self.channels}-{self.dtype}"

    def launch(self) -> None:
        from container_kernels.ops.fold_norm import triton as folding
        from container_kernels.ops.statistics import triton as statistics

        channels, rows, dtype = self.channels, 2 * self.channels, torch_dtype(self.dtype)
        first, second, gamma, beta, *grads = torch.empty(8, channels)
        weight, grad_weight = torch.empty(2, rows, channels)
        folded, (bias, shift) = torch.empty(rows, channels, dtype=dtype), torch.empty(2, rows)
        for count in (1568, 0):
            folding.forward(weight, bias, first, second, count, gamma, beta, 1e-5, folded=folded, shift=shift)
        names = ("grad_first", "grad_second", "grad_gamma", "grad_beta")
        outputs = dict(zip(names, grads, strict=True), grad_weight=grad_weight)
        folding.backward(folded, shift, weight, first, second, 1568, gamma, beta, 1e-5, **outputs)
        folding.track(gamma, beta, torch.empty((), dtype=torch.int64), first, second, 1568, 0.1)
        out, grad_out, total = torch.empty(3, 32, 49, channels, dtype=dtype)
        statistics.gradient(out, grad_out, gamma, first, second, total=total)


@dataclass(frozen=True)
class DeformableCase(Case):
    """Forward and gradients of deformable attention over an image pyramid; `exact`: float32 locations and weights."""

    ops: ClassVar = ("deformable_attention",)
    head_dim: int
    heads: int = 8
    levels: int = 4
    points: int = 4
    queries: int = 300
    exact: bool = True

    def __str__(self):
        sizes = f"q{self.queries}-{self.heads}x{self.head_dim}-l{self.levels}-p{self.points}"
        return f"sm{self.capability}-deformable-{sizes}-{self.dtype}{'' if self.exact else '-coarse'}"

    @property
    def aligned(self) -> bool:
        """Whether every head starts at a multiple of 16 bytes."""
        return self.head_dim % (8 if self.dtype in ("bfloat16", "float16") else 4) == 0

    def launch(self) -> None:
        from container_kernels.ops.deformable_attention import triton as backend
        from container_kernels.ops.deformable_attention.inputs import DeformableArguments

        dtype = torch_dtype(self.dtype)
        sampling = torch.float32 if self.exact else dtype
        sizes = [size for level in range(self.levels) for size in (-(-100 >> level), -(-167 >> level))]
        pixels = sum(height * width for height, width in zip(sizes[::2], sizes[1::2], strict=True))
        value, grad_value = torch.empty(2, 2, pixels, self.heads, self.head_dim, dtype=dtype)
        out, grad_out = torch.empty(2, 2, self.queries, self.heads, self.head_dim, dtype=dtype)
        shape = (2, self.queries, self.heads, self.levels, self.points)
        locations, grad_locations = torch.empty(2, *shape, 2, dtype=sampling)
        weights, grad_weights = torch.empty(2, *shape, dtype=sampling)
        inputs = DeformableArguments(value, sizes, locations, weights)
        backend.forward(inputs, out)
        backend.backward_value(inputs._replace(value=None), grad_out, grad_value)
        backend.backward_sampling(inputs, grad_out, grad_locations, grad_weights)


CASE_TYPES = {kind.__name__: kind for kind in (MixCase, LocalAggregationCase, ProductCase, NormCase, DeformableCase)}
