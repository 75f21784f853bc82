# SPDX-License-Identifier: MIT
"""The problems that count: shapes of the four stages at 224×224 pixels, and of detection; whole networks.

A GPU gets the batch that fills it; a CPU a sixteenth of it.
"""

from collections.abc import Iterator, Sequence

from bench.problems.context_aggregation import ContextAggregationProblem
from bench.problems.deformable_attention import DeformableAttentionProblem
from bench.problems.fused_mlp import FusedMlpProblem
from bench.problems.isotropic import IsotropicProblem
from bench.problems.local_aggregation import LocalAggregationProblem
from bench.problems.networks import BlockProblem, ModelProblem
from bench.problems.problem import Problem
from bench.problems.projection import ProjectionProblem
from container_kernels.testing import MixCase

SECTIONS = (
    "context_aggregation",
    "local_aggregation",
    "fused_mlp",
    "projection",
    "deformable_attention",
    "block",
    "model",
    "isotropic",
)

# Batch on a GPU, height, width, channels, heads.
CONTEXT_AGGREGATION_SHAPES = (
    (128, 7, 7, 512, 16),
    (128, 14, 14, 320, 10),
    (64, 28, 28, 128, 4),
    (32, 56, 56, 64, 2),
    (8, 25, 42, 512, 16),
    (4, 50, 84, 320, 10),
)
# Batch on a GPU, height, width, channels.
LOCAL_AGGREGATION_SHAPES = ((128, 7, 7, 512), (128, 14, 14, 320), (128, 28, 28, 128), (128, 56, 56, 64))
LOCAL_AGGREGATION_KERNELS = (3, 5, 7)
# Batch on a GPU, tokens, channels, hidden channels over them.
FUSED_MLP_SHAPES = ((128, 3136, 64, 8), (128, 784, 128, 8), (128, 196, 320, 4), (128, 49, 512, 4))
# Batch on a GPU, tokens, channels in and out: those of output projections, and one of queries, keys and values.
PROJECTION_SHAPES = (
    (128, 3136, 64, 64),
    (128, 784, 128, 128),
    (128, 196, 320, 320),
    (128, 49, 512, 512),
    (128, 49, 512, 1536),
)
# Images of a GPU's batch and of a CPU's; the queries of a decoder.
DEFORMABLE_ATTENTION_IMAGES = {"cuda": (2, (800, 1333)), "cpu": (1, (400, 600))}
DECODER_QUERIES = 300
# Stage, whether it mixes, batch on a GPU, grid.
BLOCKS = ((4, True, 128, 7), (3, True, 128, 14), (2, False, 128, 28), (1, False, 128, 56))
# Name, batch on a GPU, batch on a CPU, size of the image. In the first stage of CONTAINER eager keeps N×N matrices of
# 80 MB an image.
MODELS = (("container_light", 128, 8, 224), ("container", 128, 2, 224))

# Name, batch on a GPU, batch on a CPU; the image is 224×224.
ISOTROPIC = (("deit_small", 128, 4), ("mixer", 128, 2))

CPU_BATCH_DIVISOR = 16


def all_problems(device: str, sections: Sequence[str] = SECTIONS) -> list[Problem]:
    """Every problem of the sections named, in the order of the tables."""
    return [problem for section in sections for problem in _SECTIONS[section](device)]


def small_problems(device: str, sections: Sequence[str] = SECTIONS) -> list[Problem]:
    """A few problems of every kind that a slow CPU finishes in seconds, the quickest of a section first."""
    return [problem for section in sections for problem in _SMALL[section](device)]


def _batch(on_gpu: int, device: str) -> int:
    return on_gpu if device == "cuda" else max(1, on_gpu // CPU_BATCH_DIVISOR)


def _context_aggregation(device: str, shapes=CONTEXT_AGGREGATION_SHAPES) -> Iterator[Problem]:
    for backward in (False, True):
        for batch, height, width, channels, heads in shapes:
            case = MixCase(_batch(batch, device), height, width, heads, channels // heads)
            yield ContextAggregationProblem(device, backward, case)


def _local_aggregation(device: str, shapes=LOCAL_AGGREGATION_SHAPES) -> Iterator[Problem]:
    for backward in (False, True):
        for kernel in LOCAL_AGGREGATION_KERNELS:
            for batch, *shape in shapes:
                yield LocalAggregationProblem(device, backward, _batch(batch, device), *shape, kernel)


def _fused_mlp(device: str, shapes=FUSED_MLP_SHAPES) -> Iterator[Problem]:
    for backward in (False, True):
        for batch, tokens, channels, ratio in shapes:
            yield FusedMlpProblem(device, backward, _batch(batch, device), tokens, channels, ratio)


def _projection(device: str, shapes=PROJECTION_SHAPES) -> Iterator[Problem]:
    for backward in (False, True):
        for batch, tokens, channels, out_channels in shapes:
            yield ProjectionProblem(device, backward, _batch(batch, device), tokens, channels, out_channels)


def _deformable_attention(device: str) -> Iterator[Problem]:
    batch, image = DEFORMABLE_ATTENTION_IMAGES[device]
    for backward in (False, True):
        for queries in (None, DECODER_QUERIES):
            yield DeformableAttentionProblem(device, backward, batch, image, queries)


def _small_deformable_attention(device: str) -> Iterator[Problem]:
    for backward in (False, True):
        yield DeformableAttentionProblem(device, backward, 1, (400, 600), 20)


def _block(device: str, blocks=BLOCKS) -> Iterator[Problem]:
    for training in (False, True):
        for stage, mixing, batch, grid in blocks:
            yield BlockProblem(device, training, stage, mixing, _batch(batch, device), grid)


def _model(device: str, models=MODELS) -> Iterator[Problem]:
    for model, on_gpu, on_cpu, size in models:
        for training in (False, True):
            yield ModelProblem(device, training, model, on_gpu if device == "cuda" else on_cpu, size)


def _isotropic(device: str, models=ISOTROPIC) -> Iterator[Problem]:
    for model, on_gpu, on_cpu in models:
        for training in (False, True):
            yield IsotropicProblem(device, training, model, on_gpu if device == "cuda" else on_cpu, 224)


_SECTIONS = {
    "context_aggregation": _context_aggregation,
    "local_aggregation": _local_aggregation,
    "fused_mlp": _fused_mlp,
    "projection": _projection,
    "deformable_attention": _deformable_attention,
    "block": _block,
    "model": _model,
    "isotropic": _isotropic,
}
_SMALL = {
    "context_aggregation": lambda device: _context_aggregation(device, CONTEXT_AGGREGATION_SHAPES[:3]),
    "local_aggregation": lambda device: _local_aggregation(device, LOCAL_AGGREGATION_SHAPES[1:2]),
    "fused_mlp": lambda device: _fused_mlp(device, FUSED_MLP_SHAPES[3:] + FUSED_MLP_SHAPES[1:2]),
    "projection": lambda device: _projection(device, PROJECTION_SHAPES[3:4]),
    "deformable_attention": _small_deformable_attention,
    "block": lambda device: _block(device, BLOCKS[:1] + BLOCKS[2:3]),
    "model": lambda device: _model(device, (("container_light", 128, 2, 96),)),
    "isotropic": lambda device: _isotropic(device, (("deit_small", 128, 1),)),
}
