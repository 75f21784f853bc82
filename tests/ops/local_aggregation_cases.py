"""Inputs of local aggregation."""

import torch
from backends import INTERPRETED, backends_and_dtypes

# B, H, W, C, kh, kw
SHAPES = [
    (2, 5, 6, 16, 3, 3),
    (1, 7, 7, 33, 5, 5),  # channels in no multiple of a vector
    (2, 4, 9, 8, 7, 7),
    (1, 3, 2, 1, 7, 5),  # window larger than the image, one channel
    (1, 1, 1, 20, 5, 3),
    (1, 2, 40, 4, 1, 1),
    (2, 5, 9, 20, 9, 5),  # windows that have no kernel of their own
    (1, 6, 3, 3, 1, 11),
    (1, 4, 13, 9, 11, 11),
    (1, 19, 17, 70, 5, 5),  # several tiles in every direction
]

# Kernels of the interpreter are slow with these, and take float16 as they take bfloat16.
SLOW_SHAPES = (SHAPES[6], SHAPES[8], SHAPES[9])


def served():
    """(backend, dtype, shape): all on every backend, but for the interpreter's float16 of `SLOW_SHAPES`."""
    return [
        (backend, dtype, shape)
        for backend, dtype in backends_and_dtypes()
        for shape in SHAPES
        if not (INTERPRETED and backend == "triton" and dtype == torch.float16 and shape in SLOW_SHAPES)
    ]


def repeats(backend: str) -> int:
    """How often a result is computed again to see whether its bits are the same."""
    return 1 if INTERPRETED and backend == "triton" else 5


def make(shape, dtype, device, bias=True):
    batch, height, width, channels, kh, kw = shape
    x = torch.randn(batch, height, width, channels)
    weight = torch.randn(channels, kh, kw) / (kh * kw) ** 0.5
    leaves = [x, weight, torch.randn(channels) if bias else None]
    return [None if t is None else t.to(device, dtype).requires_grad_() for t in leaves]


def promoted(leaves):
    return [None if t is None else t.detach().double().requires_grad_() for t in leaves]
