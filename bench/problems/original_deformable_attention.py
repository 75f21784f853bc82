# SPDX-License-Identifier: MIT
"""The CUDA kernels of Deformable DETR, in Triton: what ours are compared with where those do not compile.

As there, a thread has one channel of one query and head, and repeats all index arithmetic of its points; loads are of
one number; the gradient of value is added by atomics, in no certain order; those of location and weight are sums over
the channels of a block. The original takes no 16 bits: here they are read and written, and the atomics are of float32.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

# Threads of a block, as the original has them; a block has the channels of as many queries and heads as fit.
THREADS = 256


@triton.jit
def _rows(num_rows, head_dim, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr):
    """(row of B · Q · M, channel, whether both exist) of every thread; [BLOCK_R, BLOCK_D]."""
    rows = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)[:, None]
    channels = tl.arange(0, BLOCK_D)[None, :]
    return rows, channels, (rows < num_rows) & (channels < head_dim)


@triton.jit
def _point(locations_ptr, weights_ptr, levels_ptr, rows, channels, exists, level, index, LEVELS, POINTS):
    """(height, width, start, y, x, weight, whether it counts) of one point, by every thread for itself."""
    height = tl.load(levels_ptr + 3 * level)
    width = tl.load(levels_ptr + 3 * level + 1)
    start = tl.load(levels_ptr + 3 * level + 2)
    # Each thread its own address, as it were.
    place = rows * (LEVELS * POINTS) + level * POINTS + index + channels * 0
    x = tl.load(locations_ptr + 2 * place, mask=exists, other=0.0).to(tl.float32) * width - 0.5
    y = tl.load(locations_ptr + 2 * place + 1, mask=exists, other=0.0).to(tl.float32) * height - 0.5
    weight = tl.load(weights_ptr + place, mask=exists, other=0.0).to(tl.float32)
    counts = exists & (x > -1) & (y > -1) & (x < width) & (y < height)
    return height, width, start, tl.where(counts, y, 0.0), tl.where(counts, x, 0.0), weight, counts


@triton.jit
def _corner(counts, low_x, low_y, height, width, DOWN: tl.constexpr, RIGHT: tl.constexpr):
    """(pixel of the level, whether it exists)."""
    x, y = low_x + RIGHT, low_y + DOWN
    return y * width + x, counts & (x >= 0) & (y >= 0) & (x < width) & (y < height)


@triton.jit(do_not_specialize=["queries", "heads", "pixels", "num_rows"])
def _forward_kernel(
    value_ptr,
    levels_ptr,
    locations_ptr,
    weights_ptr,
    out_ptr,
    queries,
    heads,
    pixels,
    num_rows,
    head_dim: tl.constexpr,
    LEVELS: tl.constexpr,
    POINTS: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    rows, channels, exists = _rows(num_rows, head_dim, BLOCK_R, BLOCK_D)
    image, head = rows // (queries.to(tl.int64) * heads) * pixels, rows % heads
    total = tl.zeros([BLOCK_R, BLOCK_D], tl.float32)
    for level in range(LEVELS):
        for index in range(POINTS):
            height, width, start, y, x, weight, counts = _point(
                locations_ptr, weights_ptr, levels_ptr, rows, channels, exists, level, index, LEVELS, POINTS
            )
            low_y, low_x = tl.floor(y), tl.floor(x)
            for down in tl.static_range(2):
                for right in tl.static_range(2):
                    pixel, inside = _corner(counts, low_x.to(tl.int32), low_y.to(tl.int32), height, width, down, right)
                    place = ((image + start + pixel) * heads + head) * head_dim + channels
                    part = (y - low_y if down else 1 - (y - low_y)) * (x - low_x if right else 1 - (x - low_x))
                    value = tl.load(value_ptr + place, mask=inside, other=0.0).to(tl.float32)
                    total += value * part * weight
    tl.store(out_ptr + rows * head_dim + channels, total, mask=exists)


@triton.jit(do_not_specialize=["queries", "heads", "pixels", "num_rows"])
def _backward_kernel(
    grad_out_ptr,
    value_ptr,
    levels_ptr,
    locations_ptr,
    weights_ptr,
    grad_value_ptr,
    grad_locations_ptr,
    grad_weights_ptr,
    queries,
    heads,
    pixels,
    num_rows,
    head_dim: tl.constexpr,
    LEVELS: tl.constexpr,
    POINTS: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    rows, channels, exists = _rows(num_rows, head_dim, BLOCK_R, BLOCK_D)
    image, head = rows // (queries.to(tl.int64) * heads) * pixels, rows % heads
    grad_out = tl.load(grad_out_ptr + rows * head_dim + channels, mask=exists, other=0.0).to(tl.float32)
    for level in range(LEVELS):
        for index in range(POINTS):
            height, width, start, y, x, weight, counts = _point(
                locations_ptr, weights_ptr, levels_ptr, rows, channels, exists, level, index, LEVELS, POINTS
            )
            low_y, low_x = tl.floor(y), tl.floor(x)
            sampled = tl.zeros([BLOCK_R, BLOCK_D], tl.float32)
            across = tl.zeros([BLOCK_R, BLOCK_D], tl.float32)
            along = tl.zeros([BLOCK_R, BLOCK_D], tl.float32)
            for down in tl.static_range(2):
                for right in tl.static_range(2):
                    pixel, inside = _corner(counts, low_x.to(tl.int32), low_y.to(tl.int32), height, width, down, right)
                    place = ((image + start + pixel) * heads + head) * head_dim + channels
                    part_y = y - low_y if down else 1 - (y - low_y)
                    part_x = x - low_x if right else 1 - (x - low_x)
                    value = tl.load(value_ptr + place, mask=inside, other=0.0).to(tl.float32)
                    sampled += value * part_y * part_x
                    across += value * part_y * (1.0 if right else -1.0)
                    along += value * part_x * (1.0 if down else -1.0)
                    share = grad_out * weight * part_y * part_x
                    tl.atomic_add(grad_value_ptr + place, share, mask=inside, sem="relaxed")
            place = rows * (LEVELS * POINTS) + level * POINTS + index
            first = rows < num_rows
            of_weight = tl.sum(grad_out * sampled, 1)[:, None]
            of_x = tl.sum(grad_out * weight * across, 1)[:, None] * width
            of_y = tl.sum(grad_out * weight * along, 1)[:, None] * height
            tl.store(grad_weights_ptr + place, of_weight, mask=first)
            tl.store(grad_locations_ptr + 2 * place, of_x, mask=first)
            tl.store(grad_locations_ptr + 2 * place + 1, of_y, mask=first)


def _launch(kernel, value, spatial_shapes, locations, tensors) -> None:
    """Launch with what both kernels take behind their tensors."""
    batch, queries, heads, levels, points, _ = locations.shape
    block_d = triton.next_power_of_2(value.shape[-1])
    block_r = max(1, THREADS // block_d)
    rows = batch * queries * heads
    constants = {"LEVELS": levels, "POINTS": points, "BLOCK_R": block_r, "BLOCK_D": block_d}
    sizes = (queries, heads, value.shape[1], rows, value.shape[-1])
    kernel[(triton.cdiv(rows, block_r),)](*tensors, *sizes, **constants, num_warps=THREADS // 32)


class _OriginalDeformableAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value, levels, locations, weights):
        out = value.new_empty((*locations.shape[:3], value.shape[-1]))
        _launch(_forward_kernel, value, levels, locations, (value, levels, locations, weights, out))
        ctx.save_for_backward(value, levels, locations, weights)
        return out

    @staticmethod
    def backward(ctx, grad_out):
        value, levels, locations, weights = ctx.saved_tensors
        grad_value = torch.zeros_like(value, dtype=torch.float32)
        grads = grad_value, torch.empty_like(locations), torch.empty_like(weights)
        tensors = (grad_out.contiguous(), value, levels, locations, weights, *grads)
        _launch(_backward_kernel, value, levels, locations, tensors)
        return grad_value.to(value.dtype), None, *grads[1:]


def original_deformable_attention(
    value: Tensor, spatial_shapes, sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    """`deformable_attention` by the original algorithm, with gradients; contiguous inputs, made so where they are not.

    spatial_shapes: (height, width) of every level, or the int32 tensor (L, 3) of `level_tensor`, made beforehand.
    """
    if not isinstance(spatial_shapes, Tensor):
        spatial_shapes = level_tensor(spatial_shapes, value.device)
    tensors = (tensor.contiguous() for tensor in (value, spatial_shapes, sampling_locations, attention_weights))
    return _OriginalDeformableAttention.apply(*tensors)


def level_tensor(spatial_shapes, device) -> Tensor:
    """(L, 3) int32: height, width and first pixel of every level, which the original has on the device, too."""
    rows, start = [], 0
    for height, width in spatial_shapes:
        rows.append((height, width, start))
        start += height * width
    return torch.tensor(rows, dtype=torch.int32, device=device)
