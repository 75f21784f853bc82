# SPDX-License-Identifier: MIT
"""Weights that belong to a grid of patches, resized on loading: position embeddings and dense affinities.

A state dict does not say what its grid was. As many tokens as the model has are taken for the model's grid; any other
square number for a square; what is left must have the ratio of sides that the model's grid has.
"""

import math
from functools import partial

from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from ..modules import ContextAggregation, resize_affinity
from ..modules.dense_affinity import Grid, resize_tokens, resize_weights

# What a layer with a dense affinity keeps by token: its name, the dimension that counts tokens, the rule.
_BY_TOKEN = {
    "affinity": (-1, resize_affinity),
    "token_mlp.w1": (-1, resize_weights),
    "token_mlp.w2": (1, partial(resize_tokens, dim=1)),
    "token_mlp.b2": (-1, resize_tokens),
}


def resized(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """`state_dict`, in our names, with what belongs to another grid resized to that of `model`.

    Raises:
        RuntimeError: a number of tokens that is no grid by the rule above.
    """
    changed = {}
    for prefix, layer in model.named_modules():
        if not isinstance(layer, ContextAggregation) or layer.grid_size is None:
            continue
        for name, parameter in layer.named_parameters():
            tensor = state_dict.get(f"{prefix}.{name}")
            if name in _BY_TOKEN and tensor is not None and tensor.ndim == parameter.ndim:
                dim, rule = _BY_TOKEN[name]
                old_grid = _trained_grid(
                    f"{prefix}.{name}", tensor.shape[dim] - layer.num_prefix_tokens, layer.grid_size
                )
                changed[f"{prefix}.{name}"] = rule(tensor, old_grid, layer.grid_size, layer.num_prefix_tokens)
    parameter, tensor = getattr(model, "pos_embed", None), state_dict.get("pos_embed")
    if isinstance(parameter, Tensor) and tensor is not None and tensor.ndim == parameter.ndim:
        old_grid = _trained_grid("pos_embed", tensor.shape[1] - model.num_prefix_tokens, model.grid_size)
        changed["pos_embed"] = resample_abs_pos_embed(tensor, model.grid_size, old_grid, model.num_prefix_tokens)
    return {**state_dict, **changed}


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
