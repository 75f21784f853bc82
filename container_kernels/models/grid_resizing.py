# SPDX-License-Identifier: MIT
"""Weights that belong to a grid of patches, resized on loading: position embeddings and dense affinities.

A state dict does not say what its grid was. As many tokens as the model has are taken for the model's grid. Any other
number must be a square, or a grid with the ratio of sides of the model's; where it is both, and they differ, nothing is
guessed.
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from ..modules import ContextAggregation, resize_affinity
from ..modules.dense_affinity import Grid
from ..modules.token_mlp import RESIZING

# What a layer with a dense affinity keeps by token: the dimensions that count tokens, and how it gets to another grid.
_RULES = {
    "affinity": ((1, 2), resize_affinity),
    **{f"token_mlp.{name}": ((dim,), rule) for name, (dim, rule) in RESIZING.items()},
}


class _ByToken(NamedTuple):
    """A parameter whose dimensions `dims` count `extra` + height · width tokens; `resize(tensor, old, grid, extra)`."""

    name: str
    parameter: Tensor
    dims: tuple[int, ...]
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
    for name, parameter, dims, resize, grid, extra in _by_token(model):
        tokens = _other_count(state_dict.get(name), parameter, dims)
        if tokens is not None:
            changed[name] = resize(state_dict[name], _trained_grid(name, tokens - extra, grid), grid, extra)
    return {**state_dict, **changed}


def _by_token(model: nn.Module) -> Iterator[_ByToken]:
    position = getattr(model, "pos_embed", None)
    if isinstance(position, Tensor):
        yield _ByToken("pos_embed", position, (1,), _resize_position, model.grid_size, model.num_prefix_tokens)
    for prefix, layer in model.named_modules():
        if isinstance(layer, ContextAggregation) and layer.grid_size is not None:
            for name, parameter in layer.named_parameters():
                if name in _RULES:
                    full = f"{prefix}.{name}"
                    yield _ByToken(full, parameter, *_RULES[name], layer.grid_size, layer.num_prefix_tokens)


def _resize_position(embedding: Tensor, old_grid: Grid, grid: Grid, extra: int) -> Tensor:
    return resample_abs_pos_embed(embedding, grid, old_grid, extra)


def _other_count(tensor: Tensor | None, parameter: Tensor, dims: tuple[int, ...]) -> int | None:
    """How many tokens `tensor` has; None where it has as many as `parameter`, or differs in something else."""
    if tensor is None or tensor.ndim != parameter.ndim:
        return None
    differing = tuple(dim for dim in range(tensor.ndim) if tensor.shape[dim] != parameter.shape[dim])
    counts = {tensor.shape[dim] for dim in dims}
    return counts.pop() if differing == dims and len(counts) == 1 else None


def _trained_grid(name: str, tokens: int, grid: Grid) -> Grid:
    """The grid that `tokens` tokens of a checkpoint, other than the model's, are for a model of `grid`."""
    divisor = math.gcd(*grid)
    ratio = grid[0] // divisor, grid[1] // divisor
    found = {candidate for sides in ((1, 1), ratio) if (candidate := _grid_with(tokens, sides)) is not None}
    if len(found) == 1:
        return found.pop()
    if found:
        raise RuntimeError(
            f"state_dict: {name} has {tokens} tokens on its grid, which may be {' or '.join(map(str, sorted(found)))}: "
            "load it into a network of the image size it was trained with, then call set_input_size()"
        )
    raise RuntimeError(
        f"state_dict: {name} has {tokens} tokens on its grid, expected {grid[0] * grid[1]} as the model, a square "
        f"number, or a grid with sides in the ratio {ratio[0]}:{ratio[1]} of the model's (weights with other prefix "
        "tokens, such as dist_token or reg_token, do not fit)"
    )


def _grid_with(tokens: int, ratio: Grid) -> Grid | None:
    """The grid of `tokens` tokens with sides in this ratio, if there is one."""
    factor = math.isqrt(max(tokens, 0) // math.prod(ratio))
    candidate = factor * ratio[0], factor * ratio[1]
    return candidate if factor > 0 and math.prod(candidate) == tokens else None
