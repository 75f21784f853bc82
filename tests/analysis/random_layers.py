"""Layers of 12 channels and 3 heads on a 4×5 grid, all parameters random, and inputs for them."""

import torch
from torch import nn

from container_kernels import ContextAggregation


def random_layer(dynamic=True, static="local", mixing="gate", prefix=0, **arguments) -> ContextAggregation:
    layer = ContextAggregation(
        12, 3, dynamic=dynamic, static=static, mixing=mixing, grid_size=(4, 5), num_prefix_tokens=prefix, **arguments
    ).double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.5)
    return layer.eval()


def random_input(layer: ContextAggregation, batch: int = 2) -> torch.Tensor:
    size = (21, 1) if layer.num_prefix_tokens else (4, 5)
    return torch.randn(batch, layer.dim, *size, dtype=torch.float64)
