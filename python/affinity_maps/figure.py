# SPDX-License-Identifier: MIT
"""The picture: a row of maps for each layer and query, beside them what was learned in every layer."""

from __future__ import annotations

import re
from typing import BinaryIO

import numpy
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from affinity_maps.measure import Layer, Map, Measurement
from container_kernels.analysis import TERMS

# Blue and orange are told apart with every kind of color vision; the markers differ too.
COLORS = {"dynamic": "#1f6feb", "static": "#d9730d", "mixed": "#24292f"}
MARKERS = {"dynamic": "o", "static": "s", "mixed": "D"}
THICKNESS = {"dynamic": 1.7, "static": 1.0, "mixed": 0.6}  # drawn in this order: of lines that coincide all are seen
GRAY = "#8a8f98"
WIDTH = 12.0  # inches, at 100 pixels each
ROW_HEIGHT, FRAME_HEIGHT, CHARTS_HEIGHT = 2.1, 1.0, 7.6
LEGEND = (
    "maps: the weight of every token for the output at the ring ({} and its channels), each map in its own "
    "scale\ndynamic: dark 0, yellow most; static and mixed: blue negative, white 0, red positive"
)


def draw_affinities(
    file: BinaryIO, pixels: numpy.ndarray, measurement: Measurement, model: str, prediction: dict | None
) -> None:
    """Write a PNG, 1200 pixels wide.

    Args:
        file: where to.
        pixels: the image as the network sees it (H, W, 3), uint8.
        measurement: what is drawn.
        model, prediction: for the title.
    """
    rows = len(measurement.maps)
    height = max(FRAME_HEIGHT + ROW_HEIGHT * rows, CHARTS_HEIGHT)
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(_title(model, prediction), fontsize=13)
    heads = "mean over every head" if measurement.head is None else f"mean over head {measurement.head}"
    figure.supxlabel(LEGEND.format(heads), fontsize=9, color="#57606a")
    left, right = figure.subfigures(1, 2, width_ratios=(2.1, 1))
    panels = left.subplots(rows, 1 + len(TERMS), squeeze=False)
    for axes, title in zip(panels[0], ("query", *TERMS), strict=True):
        axes.set_title(title, fontsize=12)
    for row, item in zip(panels, measurement.maps, strict=True):
        _draw_query(row[0], pixels, item, measurement.layers[item.layer])
        for axes, term in zip(row[1:], TERMS, strict=True):
            _draw_map(axes, item, term, pixels.shape)
    factors, distances = right.subplots(2, 1)
    mapped = sorted({item.layer for item in measurement.maps})
    _draw_factors(factors, measurement.layers, mapped)
    _draw_distances(distances, measurement.layers, mapped)
    figure.savefig(file, format="png", dpi=100)


def _title(model: str, prediction: dict | None) -> str:
    if prediction is None:
        return f"Affinities of {model}"
    name = prediction["name"] or f"class {prediction['label']}"
    return f"Affinities of {model}, which sees: {name} ({prediction['probability']:.0%})"


def _draw_query(axes: Axes, pixels: numpy.ndarray, item: Map, layer: Layer) -> None:
    axes.imshow(pixels, extent=(0, pixels.shape[1], pixels.shape[0], 0))
    axes.plot(item.query.x, item.query.y, "o", markersize=11, fillstyle="none", color="black", markeredgewidth=4)
    axes.plot(item.query.x, item.query.y, "o", markersize=11, fillstyle="none", color="white", markeredgewidth=2)
    axes.set_ylabel(layer.name, fontsize=9)
    factors = [f"{sign} {value:.2f}" for sign, value in (("α", layer.alpha), ("β", layer.beta)) if value is not None]
    axes.set_xlabel(f"{layer.grid_size[0]}×{layer.grid_size[1]} tokens, {' '.join(factors)}", fontsize=8)
    _hide_ticks(axes)


def _draw_map(axes: Axes, item: Map, term: str, shape: tuple[int, ...]) -> None:
    """Dynamic weights from 0 up in one hue; static and mixed ones have signs: blue below 0, red above."""
    _hide_ticks(axes)
    axes.set_box_aspect(shape[0] / shape[1])
    if words := instead_of_map(item, term):
        axes.set_facecolor("#f3f4f6")
        axes.text(0.5, 0.5, words, ha="center", va="center", transform=axes.transAxes, fontsize=9, color=GRAY)
        return
    grid = item.grid[term]
    limit = float(numpy.abs(grid).max()) or 1.0
    signed = term != "dynamic"
    axes.imshow(
        grid, extent=(0, shape[1], shape[0], 0), interpolation="nearest", cmap="RdBu_r" if signed else "viridis",
        vmin=-limit if signed else 0, vmax=limit,
    )  # fmt: skip
    row, column = item.cell
    thin = min(1.0, 16 / max(grid.shape))  # an outline must not hide a small cell
    height, width = (side / tokens for side, tokens in zip(shape[:2], grid.shape, strict=True))
    for color, line in (("black", 3), ("white", 1.2)):
        axes.add_patch(
            Rectangle((column * width, row * height), width, height, fill=False, color=color, linewidth=line * thin)
        )
    words = f"±{limit:.2g}" if signed else f"0 to {limit:.2g}"
    if item.prefix[term]:
        words += f", prefix {sum(item.prefix[term]):.2g}"
    axes.set_xlabel(words, fontsize=8)


def instead_of_map(item: Map, term: str) -> str | None:
    """Words, where the layer has no such term, or only one and "mixed" is the same."""
    if term not in item.grid:
        return f"this layer has\nno {term} part"
    alone = item.grid.keys() - {"mixed"}
    return f"as {alone.pop()}" if term == "mixed" and len(alone) == 1 else None


def _hide_ticks(axes: Axes) -> None:
    axes.set(xticks=[], yticks=[])


def _draw_factors(axes: Axes, layers: list[Layer], mapped: list[int]) -> None:
    for name, term in (("alpha", "dynamic"), ("beta", "static")):
        points = [(number, getattr(layer, name), layer.mixing) for number, layer in enumerate(layers)]
        _plot(axes, [(number, value) for number, value, mixing in points if mixing], term, f"{name} ({term})")
        alone = [(number, value) for number, value, mixing in points if not mixing and value is not None]
        _plot(axes, alone, term, f"{name}: {term} alone", linestyle="none", fillstyle="none")
    axes.set_title("learned factors", fontsize=12)
    low, high = axes.get_ylim()
    axes.set_ylim(min(0.0, low), max(1.0, high) * 1.02)
    _finish_chart(axes, layers, mapped)


def _draw_distances(axes: Axes, layers: list[Layer], mapped: list[int]) -> None:
    numbers = range(len(layers))
    axes.plot(numbers, [layer.uniform_distance for layer in layers], "--", color=GRAY, linewidth=1.2, label="uniform")
    for term in TERMS:
        points = [(number, layer.mean_distance(term)) for number, layer in enumerate(layers)]
        _plot(axes, [point for point in points if point[1] is not None], term, term)
        heads = [(number, value) for number, layer in enumerate(layers) for value in layer.distances.get(term, ())]
        if heads:
            axes.plot(*zip(*heads, strict=True), ".", color=COLORS[term], alpha=0.35, markersize=5)
    axes.set_title("mean attention distance", fontsize=12)
    axes.set_ylabel("pixels of the image (dots: heads)")
    axes.set_ylim(0, 1.05 * axes.get_ylim()[1])
    _finish_chart(axes, layers, mapped)


def _plot(axes: Axes, points: list[tuple[int, float]], term: str, label: str, **style) -> None:
    if points:
        size = THICKNESS[term]
        style = {
            "color": COLORS[term],
            "marker": MARKERS[term],
            "markersize": 5 * size,
            "linewidth": 1.8 * size,
            **style,
        }
        axes.plot(*zip(*points, strict=True), label=label, **style)


def _finish_chart(axes: Axes, layers: list[Layer], mapped: list[int]) -> None:
    for number in mapped:
        axes.axvspan(number - 0.3, number + 0.3, color="#eef0f3", zorder=0)
    axes.set_xticks(range(len(layers)), [_short_name(layer.name) for layer in layers])
    axes.tick_params(labelsize=9)
    if len(layers) > 12:
        axes.tick_params(axis="x", labelrotation=90)
    axes.set_xlabel("layer (gray: mapped)")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)


def _short_name(name: str) -> str:
    """stages.0.blocks.1 -> 0.1"""
    return ".".join(re.findall(r"\d+", name)) or name
