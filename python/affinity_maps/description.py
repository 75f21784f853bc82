# SPDX-License-Identifier: MIT
"""The measurements in words: the predicted class, and a table of the layers."""

from __future__ import annotations

from affinity_maps.measure import Layer, Measurement
from container_kernels.analysis import TERMS


def describe_prediction(probabilities: list[float], classes: list[str] | None) -> dict | None:
    """The most probable class; None for a network without a classifier."""
    if not probabilities:
        return None
    label = max(range(len(probabilities)), key=probabilities.__getitem__)
    return {"label": label, "name": classes[label] if classes else None, "probability": probabilities[label]}


def describe(measurement: Measurement) -> list[str]:
    """A table of the layers: their factors, and mean distances in pixels and as a part of a uniform affinity's."""
    width = max(len(layer.name) for layer in measurement.layers)
    header = "".join(f"{term + ' distance':>20}" for term in TERMS)
    lines = [f"{'layer':{width}}{'grid':>9}{'alpha':>8}{'beta':>8}{header}"]
    for layer in measurement.layers:
        factors = "".join(f"{'-' if factor is None else f'{factor:.3f}':>8}" for factor in (layer.alpha, layer.beta))
        distances = "".join(f"{_describe_distance(layer, term):>20}" for term in TERMS)
        lines.append(f"{layer.name:{width}}{'×'.join(map(str, layer.grid_size)):>9}{factors}{distances}")
    return [*lines, *(f"{name} is left out: {reason}" for name, reason in measurement.skipped.items())]


def _describe_distance(layer: Layer, term: str) -> str:
    mean = layer.mean_distance(term)
    if mean is None:
        return "-"
    return f"{mean:.2f} px {mean / layer.uniform_distance:6.1%}" if layer.uniform_distance else f"{mean:.2f} px"
