# SPDX-License-Identifier: MIT
"""The numbers: what an image makes of the affinities of a network."""

from __future__ import annotations

import dataclasses
import math

import numpy
import torch
from torch import nn

from affinity_maps.selection import Query, choose_layers
from container_kernels import ContextAggregation
from container_kernels.analysis import (
    TERMS,
    LayerAffinities,
    aggregation_layers,
    layer_inputs,
    mean_distances,
    uniform_distance,
    why_no_affinity,
)
from training.errors import DataError, OptionError


@dataclasses.dataclass(frozen=True)
class Layer:
    """One layer; distances in pixels of the image, by head."""

    name: str
    grid_size: tuple[int, int]
    dynamic: bool
    static: str | None
    mixing: str | None
    alpha: float | None
    beta: float | None
    distances: dict[str, list[float]]
    uniform_distance: float

    def mean_distance(self, term: str) -> float | None:
        """Over the heads that have weight; None if none has, or the layer lacks the term."""
        by_head = [distance for distance in self.distances.get(term, ()) if not math.isnan(distance)]
        return sum(by_head) / len(by_head) if by_head else None

    def as_dict(self) -> dict:
        """Plain values for JSON."""
        distances = {}
        for term in self.distances:
            mean = self.mean_distance(term)
            distances[term] = {
                "pixels": mean,
                "of_uniform": mean / self.uniform_distance if mean is not None and self.uniform_distance else None,
                "pixels_by_head": [None if math.isnan(distance) else distance for distance in self.distances[term]],
            }
        return {**vars(self), "distances": distances}


@dataclasses.dataclass(frozen=True)
class Map:
    """What the token of one query weighs the tokens of the grid with, by term, and the prefix tokens."""

    layer: int
    query: Query
    cell: tuple[int, int]
    grid: dict[str, numpy.ndarray]
    prefix: dict[str, list[float]]

    def as_dict(self, layer_name: str) -> dict:
        """Plain values for JSON."""
        values = {term: [[_short(value) for value in row] for row in grid.tolist()] for term, grid in self.grid.items()}
        prefix = {"prefix_tokens": self.prefix} if any(self.prefix.values()) else {}
        return {"layer": layer_name, "query": vars(self.query), "token": self.cell, **values, **prefix}


@dataclasses.dataclass(frozen=True)
class Measurement:
    """All numbers of one image; `layers` are those with affinities, `skipped` says why others have none."""

    image_size: tuple[int, int]
    head: int | None  # of the maps; None for the mean
    probabilities: list[float]
    layers: list[Layer]
    skipped: dict[str, str]
    maps: list[Map]

    def as_dict(self) -> dict:
        """Plain values for JSON."""
        return {
            "image_size": self.image_size,
            "head": "mean" if self.head is None else self.head,
            "layers": [layer.as_dict() for layer in self.layers],
            "skipped": self.skipped,
            "maps": [item.as_dict(self.layers[item.layer].name) for item in self.maps],
        }


@torch.no_grad()
def measure(
    model: nn.Module, image: torch.Tensor, layer_words: tuple[str, ...] | None, queries: list[Query], head: int | None
) -> Measurement:
    """Distances in all layers for `image` (1, 3, H, W), and maps of the chosen layers for every query.

    Raises:
        OptionError: the network has no layer with affinities, or not this layer, or a layer not this head.
        DataError: the network makes something of the image that is not finite.
    """
    try:
        layers = {name.removesuffix(".aggregation"): layer for name, layer in aggregation_layers(model).items()}
    except ValueError as error:
        raise OptionError(f"no affinities to show: {error}") from error
    skipped = {name: reason for name, layer in layers.items() if (reason := why_no_affinity(layer))}
    shown = [name for name in layers if name not in skipped]
    if not shown:
        raise OptionError(f"no affinities to show: all {len(layers)} layers are {next(iter(skipped.values()))}")
    chosen = choose_layers(layer_words, shown)
    for number in chosen:
        _check_head(head, shown[number], layers[shown[number]])

    output, inputs = layer_inputs(model, image)
    if not output.isfinite().all():
        raise DataError("the network's output for this image is not finite: its weights or the image are of no use")
    inputs = {name.removesuffix(".aggregation"): x for name, x in inputs.items()}
    image_size = tuple(image.shape[2:])
    measured, maps = [], {}
    for number, name in enumerate(shown):
        layer, x = layers[name], inputs.pop(name)
        affinities = LayerAffinities(layer, x, _hidden_grid(layer, x, image_size))
        measured.append(_measure_layer(name, layer, affinities, image_size))
        if number in chosen:
            maps[number] = [_measure_map(number, affinities, query, head, image_size) for query in queries]
    probabilities = output.float().softmax(-1)[0].tolist() if output.ndim == 2 and model.num_classes else []
    in_order = [item for number in chosen for item in maps[number]]
    return Measurement(image_size, head, probabilities, measured, skipped, in_order)


def _check_head(head: int | None, name: str, layer: ContextAggregation) -> None:
    if head is not None and head >= layer.num_heads:
        raise OptionError(f"--head {head}: {name} has heads 0 to {layer.num_heads - 1}")


def _hidden_grid(layer: ContextAggregation, x: torch.Tensor, image_size: tuple[int, int]) -> tuple[int, int] | None:
    """The grid behind prefix tokens where the layer does not know it: as many tokens in the image's proportions."""
    if not layer.num_prefix_tokens or layer.grid_size is not None:
        return None
    tokens = x.shape[2] - layer.num_prefix_tokens
    height = max(1, round(math.sqrt(tokens * image_size[0] / image_size[1])))
    return height, tokens // height


def _measure_layer(
    name: str, layer: ContextAggregation, affinities: LayerAffinities, image_size: tuple[int, int]
) -> Layer:
    spacing = tuple(side / tokens for side, tokens in zip(image_size, affinities.grid_size, strict=True))
    distances = mean_distances(affinities, spacing)
    return Layer(
        name=name,
        grid_size=affinities.grid_size,
        dynamic=layer.dynamic,
        static=layer.static,
        mixing=layer.mixing,
        alpha=affinities.alpha,
        beta=affinities.beta,
        distances={term: distances[term].tolist() for term in TERMS if term in distances},
        uniform_distance=uniform_distance(affinities.grid_size, spacing),
    )


def _measure_map(
    number: int, affinities: LayerAffinities, query: Query, head: int | None, image_size: tuple[int, int]
) -> Map:
    """The query's row of every term, the mean over heads (or one) and over the matrices of a head's channels."""
    prefix, (height, width) = affinities.num_prefix_tokens, affinities.grid_size
    row, column = query.cell(affinities.grid_size, image_size)
    rows = affinities.rows(torch.tensor([prefix + row * width + column], device=affinities.device))
    heads = slice(None) if head is None else slice(head, head + 1)
    means = {term: rows[term][0, heads, :, 0].mean((0, 1)).cpu() for term in TERMS if term in rows}
    return Map(
        layer=number,
        query=query,
        cell=(row, column),
        grid={term: mean[prefix:].view(height, width).double().numpy() for term, mean in means.items()},
        prefix={term: mean[:prefix].tolist() for term, mean in means.items()},
    )


def _short(value: float) -> float:
    """Six digits, all that float32 computes with: the file is half as long."""
    return float(f"{value:.6g}")
