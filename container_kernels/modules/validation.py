# SPDX-License-Identifier: MIT
"""Checks that layers share."""

from torch import Tensor

from ..ops.common.validation import MAX_WINDOW


def check_image(x: Tensor, dim: int) -> None:
    """`x` is (B, dim, H, W)."""
    if not isinstance(x, Tensor):
        raise TypeError(f"x: expected a tensor (B, C, H, W), got {type(x).__name__}")
    if x.ndim == 3 and x.shape[2] == dim:
        raise ValueError(
            f"x: expected (B, C, H, W) with C = {dim}, got {tuple(x.shape)}: tokens (B, N, C) of a grid become an "
            "image by x.transpose(1, 2).unflatten(2, (H, W))"
        )
    if x.ndim != 4 or x.shape[1] != dim:
        raise ValueError(f"x: expected (B, C, H, W) with C = {dim}, got {tuple(x.shape)}")


def check_grid(x: Tensor, grid_size: tuple[int, int] | None, num_prefix_tokens: int = 0) -> None:
    """`x` (B, C, H, W) has the grid of a dense affinity, if there is one; a column where tokens precede the grid."""
    if grid_size is None:
        return
    expected = grid_size if num_prefix_tokens == 0 else (num_prefix_tokens + grid_size[0] * grid_size[1], 1)
    if expected != tuple(x.shape[-2:]):
        raise ValueError(
            f"x: expected H, W = {expected}, which the dense affinity fixes, got {tuple(x.shape[-2:])}: a layer's "
            "set_grid_size() or a network's set_input_size() changes it"
        )


def window_of(kernel_size: int | tuple[int, int]) -> tuple[int, int]:
    """Height and width of a window given as one odd integer or two, up to `MAX_WINDOW`."""
    pair = (kernel_size, kernel_size) if type(kernel_size) is int else kernel_size
    if (
        not isinstance(pair, tuple | list)
        or len(pair) != 2
        or not all(type(side) is int and side % 2 == 1 and 1 <= side <= MAX_WINDOW for side in pair)
    ):
        raise ValueError(f"kernel_size: expected one or two odd integers up to {MAX_WINDOW}, got {kernel_size!r}")
    return tuple(pair)


def window_name(window: tuple[int, int]) -> str:
    """A window as the argument kernel_size has it."""
    return str(window[0] if window[0] == window[1] else tuple(window))


def check_probability(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise ValueError(f"{name}: expected a probability of at least 0 and below 1, got {value!r}")
