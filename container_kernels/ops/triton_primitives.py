"""Triton helpers that the aggregation and the depthwise kernels use unchanged."""

import contextlib

import torch
import triton
import triton.language as tl

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


def device_of(tensor: torch.Tensor) -> contextlib.AbstractContextManager:
    """Make `tensor`'s GPU current, as Triton launches on the current device; the interpreter needs nothing."""
    return torch.cuda.device_of(tensor) if tensor.is_cuda else contextlib.nullcontext()


def tap_major(weight: torch.Tensor) -> torch.Tensor:
    """(C, kh, kw) -> contiguous (kh*kw, C), so that one tap of neighbouring channels is one cache line.

    Read in their own order, 32 channels of a tap lie in 25 lines: weights would cost more than pixels.
    """
    return weight.flatten(1).t().contiguous()


@triton.jit
def rounded(tile, dtype: tl.constexpr):
    """A float32 tile in `dtype`, to nearest even; the interpreter alone would truncate to bfloat16."""
    if INTERPRETED and dtype == tl.bfloat16:
        bits = tile.to(tl.uint32, bitcast=True)
        tile = (bits + 0x7FFF + ((bits >> 16) & 1)).to(tl.float32, bitcast=True)
    return tile.to(dtype)


@triton.jit
def add_window(
    accumulator,
    image_ptr,
    taps_ptr,
    row,
    column,
    channels,
    channel_mask,
    height,
    width,
    stride_h,
    stride_w,
    num_channels,
    KERNEL_H: tl.constexpr,
    KERNEL_W: tl.constexpr,
    FLIPPED: tl.constexpr,
):
    """accumulator[p, c] += Σ_taps taps[tap, c] · image[row[p] + dy, column[p] + dx, c], zero outside.

    taps is (KERNEL_H*KERNEL_W, num_channels); FLIPPED reads it backwards, which transposes the operation.
    One kernel row is unrolled: enough independent loads to hide the cache, without the code size of all taps.
    """
    offsets = row.to(tl.int64)[:, None] * stride_h + column.to(tl.int64)[:, None] * stride_w + channels[None, :]
    for tap_row in range(KERNEL_H):
        dy = tap_row - KERNEL_H // 2
        row_inside = (row + dy >= 0) & (row + dy < height)
        row_ptr = image_ptr + tl.cast(dy, tl.int64) * stride_h
        for tap_column in tl.static_range(KERNEL_W):
            dx = tap_column - KERNEL_W // 2
            tap = tap_row * KERNEL_W + tap_column
            if FLIPPED:
                tap = KERNEL_H * KERNEL_W - 1 - tap
            inside = row_inside & (column + dx >= 0) & (column + dx < width)
            pixels = tl.load(row_ptr + dx * stride_w + offsets, mask=inside[:, None] & channel_mask[None, :], other=0.0)
            weights = tl.load(taps_ptr + tap * num_channels + channels, mask=channel_mask, other=0.0)
            accumulator += pixels.to(tl.float32) * weights[None, :]
    return accumulator
