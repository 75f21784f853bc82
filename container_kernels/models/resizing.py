# SPDX-License-Identifier: MIT
"""Weights that belong to a grid of patches, resized on loading: position embeddings and dense affinities.

A state dict does not say what its grid was. As many tokens as the model has are taken for the model's grid; any other
square number for a square; what is left must have the ratio of sides that the model's grid has.
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from ..modules import ContextAggregation, resize_affinity
from ..modules.dense_affinity import Grid
from ..modules.token_mlp import RESIZING

# What a layer with a dense affinity keeps by token, and how it gets to another grid.
_RULES = {"affinity": resize_affinity, **{f"token_mlp.{name}": rule for name, rule in RESIZING.items()}}


class _ByToken(NamedTuple):
    """A parameter with a dimension of `extra` + height · width tokens; `resize(tensor, old grid, grid, extra)`."""

    name: str
    parameter: Tensor
    resize: Callable[[Tensor, Grid, Grid, int], Tensor]
    grid: Grid
    extra: int


def resized(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """`state_dict`, in our names, with what belongs to another grid resized to that of `model`.

    Tensors that differ from the model's in anything but the number of tokens stay, for `load_state_dict` to refuse.

    Raises:
        RuntimeError: a number of tokens that is no grid by the rule above.
    """
    changed = {}
    for name, parameter, resize, grid, extra in _by_token(model):
        tokens = _other_count(state_dict.get(name), parameter, extra + grid[0] * grid[1])
        if tokens is not None:
            changed[name] = resize(state_dict[name], _trained_grid(name, tokens - extra, grid), grid, extra)
    return {**state_dict, **changed}


def _by_token(model: nn.Module) -> Iterator[_ByToken]:
    position = getattr(model, "pos_embed", None)
    if isinstance(position, Tensor):
        yield _ByToken("pos_embed", position, _resize_position, model.grid_size, model.num_prefix_tokens)
    for prefix, layer in model.named_modules():
        if isinstance(layer, ContextAggregation) and layer.grid_size is not None:
            for name, parameter in layer.named_parameters():
                if name in _RULES:
                    full = f"{prefix}.{name}"
                    yield _ByToken(full, parameter, _RULES[name], layer.grid_size, layer.num_prefix_tokens)


def _resize_position(embedding: Tensor, old_grid: Grid, grid: Grid, extra: int) -> Tensor:
    return resample_abs_pos_embed(embedding, grid, old_grid, extra)


def _other_count(tensor: Tensor | None, parameter: Tensor, tokens: int) -> int | None:
    """What `tensor` has where `parameter` has `tokens`; None where it has as many, or differs in something else."""
    if tensor is None or tensor.ndim != parameter.ndim:
        return None
    differing = {(old, new) for old, new in zip(tensor.shape, parameter.shape, strict=True) if old != new}
    old, new = differing.pop() if len(differing) == 1 else (None, None)
    return old if new == tokens else None


def _trained_grid(name: str, tokens: int, grid: Grid) -> Grid:
    """The grid that `tokens` tokens of a checkpoint are, for a model of `grid`."""
    height, width = grid
    if tokens == height * width:
        return grid
    side = math.isqrt(max(tokens, 0))
    if tokens > 0 and side * side == tokens:
        return side, side
    divisor = math.gcd(height, width)
    height, width = height // divisor, width // divisor
    factor = math.isqrt(max(tokens, 0) // (height * width))
    if factor > 0 and factor * factor * height * width == tokens:
        return factor * height, factor * width
    raise RuntimeError(
        f"state_dict: {name} has {tokens} tokens on its grid, expected {grid[0] * grid[1]} as the model, "
        f"a square number, or a grid with sides in the ratio {height}:{width} of the model's"
    )
