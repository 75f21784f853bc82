"""Inputs of the Triton MLP with biases in float32, and its gradients by name."""

import torch
from backends import DEVICES

DEVICE = DEVICES["triton"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# (batch, tokens, channels, hidden, out_channels): several tiles of each with a last one that is not full; one token.
SHAPES = [(3, 47, 20, 70, 20), (2, 65, 33, 48, 17), (1, 1, 64, 130, 64)]


def make(shape, dtype):
    batch, tokens, channels, hidden, out_channels = shape
    sizes = [(batch, tokens, channels), (hidden, channels), (hidden,), (out_channels, hidden), (out_channels,)]
    leaves = [torch.randn(size) for size in sizes]
    leaves[1] *= 2 / channels**0.5  # GELU bends
    leaves[3] /= hidden**0.5
    return [t.to(DEVICE, dtype if t.ndim > 1 else torch.float32).requires_grad_() for t in leaves]


def gradient_of(out):
    return torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).bfloat16().to(out)


def run(function, leaves, sample_scale, dtype=None, **options):
    """Output and gradients by name; `dtype` promotes everything."""
    leaves = [t.detach().to(dtype or t.dtype).requires_grad_() for t in leaves]
    scale = None if sample_scale is None else sample_scale.to(dtype or sample_scale.dtype)
    out = function(*leaves, sample_scale=scale, **options)
    grad_out = gradient_of(out)
    return out, dict(zip(("x", "w1", "b1", "w2", "b2"), torch.autograd.grad(out, leaves, grad_out), strict=True))
