"""Samples of cases: the shapes of our networks, one per branch of the launch rules, random ones by a fixed seed."""

import random
from collections.abc import Iterable, Iterator
from functools import cache

from compile_cases import (
    SHARED_MEMORY,
    Case,
    DeformableCase,
    LocalAggregationCase,
    MixCase,
    NormCase,
    ProductCase,
)

CAPABILITIES = tuple(SHARED_MEMORY)
DTYPES = ("bfloat16", "float16", "float32", "tf32")
# head_dim of networks; others are drawn.
HEAD_DIMS = tuple(range(16, 129, 8))
GRIDS = ((1, 1), (1, 7), (3, 3), (5, 5), (7, 7), (10, 10), (13, 13), (14, 14), (16, 16), (197, 1), (20, 21), (28, 28))
WINDOWS = ((0, 0), (1, 1), (3, 3), (5, 5), (7, 7), (3, 5), (7, 1))
# The stages of the pyramids, DeiT and Mixer, the tokens of Mixer in the place of channels.
PRODUCTS = (
    (64, 512, 64),
    (128, 1024, 128),
    (320, 1280, 320),
    (512, 2048, 512),
    (192, 768, 192),
    (384, 1536, 384),
    (768, 3072, 768),
    (196, 384, 196),
)
# Padding, of channels and of tiles, on chip and in memory; other widths out than in; rows that are not aligned.
UNEVEN_PRODUCTS = (
    (20, 70, 33),
    (100, 70, 97),
    (7, 9, 5),
    (48, 96, 100),
    (16, 64, 16),
    (32, 256, 32),
    (96, 1000, 64),
    (130, 70, 200),
    (256, 64, 32),
    (40, 160, 40),
    (72, 288, 72),
    (1, 1, 1),
)


def mix(capability: int, dtype: str, grid: tuple[int, int], head_dim: int, window: int = 0, **others) -> MixCase:
    return MixCase(capability, dtype, *grid, head_dim, window=(window, window), **others)


# The mix of stages, and of isotropic networks.
STAGES = (
    lambda capability, dtype, head_dim: mix(capability, dtype, (7, 7), head_dim, 5),
    lambda capability, dtype, head_dim: mix(capability, dtype, (14, 14), head_dim, 5),
    lambda capability, dtype, head_dim: mix(capability, dtype, (28, 28), head_dim, 5),
    lambda capability, dtype, head_dim: mix(capability, dtype, (197, 1), head_dim, dense=True),
)


def branches() -> list[Case]:
    """One case per branch of the launch rules: whole rows and tiles, accumulator widths, padding, static terms, and
    the isotropic DeiT-S and CONTAINER-PAM."""
    cases = []
    for capability in (80, 90):
        cases += [
            mix(capability, "bfloat16", (7, 7), 32, 5),
            mix(capability, "bfloat16", (14, 14), 32, 5, dense=True),
            mix(capability, "float16", (28, 28), 64, 3),
            mix(capability, "float32", (7, 7), 32, 5),
            mix(capability, "bfloat16", (197, 1), 64),
            mix(capability, "bfloat16", (197, 1), 64, dense=True),
            mix(capability, "bfloat16", (14, 14), 32, 11),
            LocalAggregationCase(capability, "bfloat16", 56, 56, 64, (5, 5)),
            LocalAggregationCase(capability, "bfloat16", 14, 14, 64, (11, 11)),
            LocalAggregationCase(capability, "float32", 14, 14, 64, (9, 3)),
            ProductCase(capability, "bfloat16", *PRODUCTS[0]),
            ProductCase(capability, "float16", *PRODUCTS[1], full=False),
            ProductCase(capability, "bfloat16", *PRODUCTS[2]),
            ProductCase(capability, "float32", *PRODUCTS[0]),
            ProductCase(capability, "tf32", *PRODUCTS[2], full=False),
            ProductCase(capability, "float16", *UNEVEN_PRODUCTS[0]),
            ProductCase(capability, "bfloat16", *PRODUCTS[-1], full=False),
            NormCase(capability, "bfloat16", 64),
            NormCase(capability, "float32", 320),
            NormCase(capability, "float16", 37),
            DeformableCase(capability, "bfloat16", 32),
        ]
    return [
        *cases,
        mix(80, "float16", (3, 3), 20, 3),
        MixCase(86, "float16", 3, 3, 111, 1, (7, 7), dense=True),
        MixCase(100, "float32", 10, 10, 85, 3, (5, 5)),
        mix(90, "bfloat16", (20, 20), 256),
        LocalAggregationCase(80, "float32", 14, 14, 64, (7, 7)),
        # Steps that are not full, one channel after the other, in float16; a head as wide as a block; TF32.
        DeformableCase(90, "float16", 33, 3, 3, 5, 77, exact=False),
        DeformableCase(90, "bfloat16", 256, 1, 1, 1),
        DeformableCase(80, "tf32", 64),
        DeformableCase(100, "float32", 128, 2, 2, 8, 1),
    ]


def random_case(draw: random.Random, capability: int, dtype: str) -> Case:
    """Anything that may be asked for: sizes over orders of magnitude, odd ones as likely as even ones."""
    kinds = {MixCase: 5, LocalAggregationCase: 2, ProductCase: 3, NormCase: 0.5, DeformableCase: 2}
    kind = draw.choices(tuple(kinds), weights=kinds.values())[0]
    size = lambda most: draw.choice((draw.randint(1, most), 8 * draw.randint(1, most // 8)))  # noqa: E731
    if kind is MixCase:
        grid = draw.choice(GRIDS)
        window, dense = draw.choice(WINDOWS), draw.random() < 0.3
        return MixCase(capability, dtype, *grid, size(256), draw.choice((1, 3, 4, 10)), window, dense)
    if kind is LocalAggregationCase:
        window = draw.choice(WINDOWS[1:])
        return LocalAggregationCase(capability, dtype, draw.randint(1, 60), draw.randint(1, 60), size(320), window)
    if kind is ProductCase:
        most = draw.choice((32, 64, 128, 600))
        channels = size(most)
        out_channels = channels if draw.random() < 0.5 else size(most)
        return ProductCase(capability, dtype, channels, size(4 * most), out_channels, draw.random() < 0.5)
    if kind is DeformableCase:
        levels, points = draw.randint(1, 5), draw.randint(1, 9)
        queries, exact = draw.choice((1, 300, 22223)), draw.random() < 0.7
        return DeformableCase(capability, dtype, size(256), draw.randint(1, 16), levels, points, queries, exact)
    return NormCase(capability, dtype, size(600))


def random_cases(count: int, seed: int, first_dtype: int = 0) -> list[Case]:
    """`count` different cases, GPUs and dtypes in turn."""
    draw = random.Random(seed)
    cases: dict[Case, None] = {}
    while len(cases) < count:
        turn = len(cases)
        capability = CAPABILITIES[turn % len(CAPABILITIES)]
        cases[random_case(draw, capability, DTYPES[(first_dtype + turn // len(CAPABILITIES)) % len(DTYPES)])] = None
    return list(cases)


def network_cases(capability: int) -> Iterator[Case]:
    """Every dtype with every head_dim that networks use and every MLP.

    Mixes are on the stages' grids in turn, another one with each GPU and dtype; MLPs are full and bare in turn.
    """
    gpu = CAPABILITIES.index(capability)
    for dtype_index, dtype in enumerate(DTYPES):
        for index, head_dim in enumerate((*HEAD_DIMS, 256)):
            yield STAGES[(index + gpu + dtype_index) % len(STAGES)](capability, dtype, head_dim)
        for index, sizes in enumerate((*PRODUCTS, *UNEVEN_PRODUCTS)):
            yield ProductCase(capability, dtype, *sizes, full=(index + gpu + dtype_index) % 2 == 0)
        # Deformable DETR and its descendants have 8 heads of 32, 4 levels, 4 points; others 16 to 64, 1 to 5 and 8.
        for head_dim, levels, points in ((32, 4, 4), (16, 3, 4), (64, 4, 4), (32, 1, 8), (32, 5, 4), (128, 4, 4)):
            yield DeformableCase(capability, dtype, head_dim, levels=levels, points=points)
        for head_dim in (1, 3, 8, 33, 256):
            yield DeformableCase(capability, dtype, head_dim, queries=22223, exact=dtype != "float16")
        if dtype != "tf32":
            for window in (1, 3, 5, 7):
                yield LocalAggregationCase(capability, dtype, 14, 14, 64, (window, window))
                yield LocalAggregationCase(capability, dtype, 14, 14, 40, (window, window))
            for channels in (64, 320, 37):
                yield NormCase(capability, dtype, channels)


@cache
def exhaustive(capability: int) -> tuple[Case, ...]:
    """All that a release is held to on one kind of GPU."""
    drawn = [case for case in random_cases(600, seed=1) if case.capability == capability]
    own = [case for case in branches() if case.capability == capability]
    return tuple(unique((*own, *network_cases(capability), *drawn)))


def unique(cases: Iterable[Case]) -> list[Case]:
    return list(dict.fromkeys(cases))
