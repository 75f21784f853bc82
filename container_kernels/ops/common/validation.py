# SPDX-License-Identifier: MIT
"""Checks every op makes of its arguments, before any kernel runs.

A message names the argument, what was expected and what came.
"""

import torch
from torch import Tensor

FLOATING_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# The largest height and width of a window (csrc/common/windows.h).
MAX_WINDOW = 11


def check_tensor(name: str, value, ndim: int, shape_name: str) -> None:
    """`value` is a floating-point tensor with `ndim` dimensions, described as `shape_name`."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a tensor {shape_name}, got {type(value).__name__}")
    if value.layout is not torch.strided or value.is_nested:
        raise TypeError(f"{name}: expected a dense tensor, got layout {value.layout}, is_nested={value.is_nested}")
    if value.dtype not in FLOATING_DTYPES:
        raise TypeError(f"{name}: expected dtype float32, bfloat16, float16 or float64, got {value.dtype}")
    if value.ndim != ndim:
        raise ValueError(f"{name}: expected {ndim} dimensions {shape_name}, got shape {tuple(value.shape)}")


def check_shape(name: str, value: Tensor, shape: tuple[int, ...], shape_name: str) -> None:
    if tuple(value.shape) != shape:
        raise ValueError(f"{name}: expected {shape_name} = {shape}, got {tuple(value.shape)}")


def check_device(name: str, value: Tensor, like_name: str, like: Tensor) -> None:
    if value.device != like.device:
        raise ValueError(f"{name}: expected device {like.device} as {like_name}, got {value.device}")


def check_window(name: str, weight, channels: int, like_name: str, like: Tensor) -> None:
    """`weight` holds one odd kh × kw filter for each of `channels` channels."""
    check_tensor(name, weight, 3, "(C, kh, kw)")
    kh, kw = weight.shape[1:]
    if weight.shape[0] != channels or kh % 2 == 0 or kw % 2 == 0:
        raise ValueError(f"{name}: expected (C, kh, kw) = ({channels}, odd, odd), got {tuple(weight.shape)}")
    if max(kh, kw) > MAX_WINDOW:
        raise ValueError(f"{name}: expected kh and kw up to {MAX_WINDOW}, got {tuple(weight.shape)}")
    check_device(name, weight, like_name, like)


def check_bias(name: str, bias, channels: int, like_name: str, like: Tensor, shape_name: str = "(C,)") -> None:
    """`bias` holds one number for each of `channels` channels."""
    check_tensor(name, bias, 1, shape_name)
    check_shape(name, bias, (channels,), shape_name)
    check_device(name, bias, like_name, like)


def check_channels_last(x: Tensor, channels: int, owner: str) -> None:
    """`x` (B, …, C) has the channels of `owner` last, and not second as the images of layers."""
    if x.shape[-1] != channels and x.ndim > 2 and x.shape[1] == channels:
        raise ValueError(
            f"x: expected (B, …, C) with C = {channels} as {owner} has, got {tuple(x.shape)}, which has its channels "
            "second: pass x.movedim(1, -1)"
        )


def check_tokens(name: str, value) -> None:
    """`value` is (B, …, C): at least a batch, and at least one channel."""
    shape_name = "(B, …, C)"
    check_tensor(name, value, getattr(value, "ndim", 2), shape_name)
    if value.ndim < 2 or value.shape[-1] < 1:
        raise ValueError(f"{name}: expected {shape_name} with C ≥ 1, got {tuple(value.shape)}")


def check_matrix(
    name: str, value, shape: tuple[int | None, int | None], shape_name: str, like_name: str, like: Tensor
) -> None:
    """`value` is a matrix of `shape`, where None stands for any size of at least 1."""
    check_tensor(name, value, 2, shape_name)
    if any(size < 1 if wanted is None else size != wanted for size, wanted in zip(value.shape, shape, strict=True)):
        expected = ", ".join("≥ 1" if wanted is None else str(wanted) for wanted in shape)
        raise ValueError(f"{name}: expected {shape_name} = ({expected}), got {tuple(value.shape)}")
    check_device(name, value, like_name, like)


def check_sample_scale(name: str, value, like_name: str, like: Tensor) -> None:
    """`value` is a (B,) per-sample scale that does not require grad."""
    check_tensor(name, value, 1, "(B,)")
    check_shape(name, value, (like.shape[0],), "(B,)")
    check_device(name, value, like_name, like)
    if value.requires_grad:
        raise ValueError(f"{name}: expected a tensor without gradient (a mask of drop-path), got requires_grad=True")
