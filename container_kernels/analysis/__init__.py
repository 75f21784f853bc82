# SPDX-License-Identifier: MIT
"""Affinity matrices of a network's layers, written out, and how far they reach.

    output, inputs = layer_inputs(model, images)
    for name, x in inputs.items():
        affinities = LayerAffinities(aggregation_layers(model)[name], x)
        affinities.rows(torch.tensor([0]))["mixed"]      # with what the first token weighs all tokens
        mean_distances(affinities)["dynamic"]            # of each head, in steps of the grid

Slow beside the kernels, which never form these matrices, and made for looking at them.
"""

from .affinities import TERMS, LayerAffinities, why_no_affinity
from .layers import aggregation_layers, layer_inputs
from .locality import mean_distances, uniform_distance

__all__ = [
    "TERMS",
    "LayerAffinities",
    "aggregation_layers",
    "layer_inputs",
    "mean_distances",
    "uniform_distance",
    "why_no_affinity",
]
