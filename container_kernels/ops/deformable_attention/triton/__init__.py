# SPDX-License-Identifier: MIT
"""The Triton backend of deformable attention: launches. The math is in forward.py and backward_*.py."""

import math

import torch
import triton
from torch import Tensor
from triton import JITFunction

from ...common.triton_fitting import fitting
from ...common.triton_primitives import device_of, precision
from ...common.triton_tiles import padded
from ..inputs import DeformableArguments
from . import config as configs
from .backward_sampling import backward_sampling_kernel
from .backward_value import backward_value_kernel, boxes_kernel
from .config import SamplingConfig, ValueConfig
from .forward import forward_kernel

__all__ = ["SamplingConfig", "ValueConfig", "backward_sampling", "backward_value", "forward"]


def encoded(spatial_shapes: list[int]) -> tuple[int, ...]:
    """Heights and widths as odd numbers above 1, of which Triton knows nothing that it would compile in."""
    return tuple([2 * size + 1 for size in spatial_shapes])


def unit_of(tensor: Tensor) -> int:
    """Elements, up to 16 bytes, that the strides of (B, S, M, D) and its address are multiples of."""
    strides = [stride for size, stride in zip(tensor.shape[:3], tensor.stride(), strict=False) if size > 1]
    size = tensor.element_size()
    return math.gcd(16 // size, tensor.data_ptr() // size, *strides)


def shape_constants(inputs: DeformableArguments) -> dict:
    """What every kernel is compiled for."""
    points = inputs.sampling_locations.shape[4]
    return {"LEVELS": len(inputs.spatial_shapes) // 2, "POINTS": points, "STEP": configs.step(points)}


def forward(inputs: DeformableArguments, out: Tensor) -> None:
    """Write Σ weight · bilinear(value) to `out` (B, Q, M, D), dtype of value."""
    tensors = (inputs.value, inputs.sampling_locations, inputs.attention_weights, out)
    _sample(forward_kernel, inputs, tensors, {})


def backward_sampling(inputs: DeformableArguments, grad_out: Tensor, grad_locations: Tensor, grad_weights: Tensor):
    """Write the gradients of locations and weights, in the dtypes of their outputs; grad_out is contiguous."""
    tensors = (grad_out, inputs.value, inputs.sampling_locations, inputs.attention_weights)
    constants = {"BLOCK_P": configs.places(inputs.sampling_locations.shape[4])}
    _sample(backward_sampling_kernel, inputs, (*tensors, grad_locations, grad_weights), constants)


def _sample(kernel: JITFunction, inputs: DeformableArguments, tensors: tuple[Tensor, ...], constants: dict) -> None:
    """Launch a kernel whose programs have a block of queries of one head."""
    value = inputs.value
    batch, queries, heads = inputs.sampling_locations.shape[:3]
    head_dim = value.shape[-1]
    unit = unit_of(value)
    strides = [stride // unit for stride in value.stride()[:3]]
    arguments = (*tensors, encoded(inputs.spatial_shapes), *strides, queries, heads)
    fixed = shape_constants(inputs) | constants

    def options(config: SamplingConfig) -> dict:
        return fixed | {
            "UNIT": unit,
            "HEAD_DIM": head_dim,
            "BLOCK_D": configs.block_d(head_dim),
            "BLOCK_Q": config.block_q,
            "num_warps": config.num_warps,
            "enable_fp_fusion": True,  # Triton 3.10 changes the default
        }

    with device_of(value):
        candidates = configs.sampling_config(head_dim, math.gcd(unit, head_dim))
        config = fitting(lambda _: kernel, candidates, arguments, options)
        kernel[(batch * heads * triton.cdiv(queries, config.block_q),)](*arguments, **options(config))


def backward_value(inputs: DeformableArguments, grad_out: Tensor, grad_value: Tensor) -> None:
    """Write the gradient of value (B, S, M, D), dtype of grad_out, both contiguous. Sums have a fixed order."""
    locations, weights = inputs.sampling_locations, inputs.attention_weights
    batch, queries, heads, head_dim = grad_out.shape
    sizes = encoded(inputs.spatial_shapes)
    constants = shape_constants(inputs)
    levels = constants["LEVELS"]
    blocks = triton.cdiv(queries, configs.BLOCK_Q)
    boxes = torch.empty((batch, heads, levels, 4, blocks), dtype=torch.float32, device=grad_out.device)

    def options(config: ValueConfig) -> dict:
        return constants | {
            "HEAD_DIM": head_dim,
            "BLOCK_D": padded(head_dim),
            "ROWS": config.rows,
            "COLUMNS": config.columns,
            "BLOCK_Q": configs.BLOCK_Q,
            "PRECISION": precision(grad_out.dtype),
            "num_warps": config.num_warps,
            "enable_fp_fusion": True,  # Triton 3.10 changes the default
        }

    def arguments(tiles: int) -> tuple:
        tensors = (grad_out, locations, weights, boxes, grad_value)
        return (*tensors, sizes, queries, heads, grad_value.shape[1], tiles)

    with device_of(grad_out):
        boxes_kernel[(batch * heads * blocks,)](
            locations,
            boxes,
            sizes,
            queries,
            heads,
            LEVELS=levels,
            POINTS=constants["POINTS"],
            BLOCK_Q=configs.BLOCK_Q,
            num_warps=1,
        )
        config = fitting(lambda _: backward_value_kernel, configs.value_config(head_dim), arguments(1), options)
        tiles = sum(
            triton.cdiv(level.height, config.rows) * triton.cdiv(level.width, config.columns)
            for level in inputs.levels()
        )
        backward_value_kernel[(batch * tiles * heads,)](*arguments(tiles), **options(config))
