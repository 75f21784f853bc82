# SPDX-License-Identifier: MIT
"""The command line of `affinity.py`."""

from __future__ import annotations

import dataclasses

from affinity_maps.selection import DEFAULT_QUERIES
from networks.options import SavedNetworkOptions
from training.options import option, positional
from training.shared_options import DeviceOptions, ImageOptions


@dataclasses.dataclass(frozen=True, kw_only=True)
class AffinityOptions(DeviceOptions, ImageOptions, SavedNetworkOptions):
    """The options of this program."""

    checkpoint: str = positional("the weights: of train.py, released, or of any network of this package", "input")
    image: str = positional("the image to look at", "input")

    layers: tuple[str, ...] | None = option(
        None, "layers to map, by name or number (default: first, middle, last)", "maps", nargs="+", metavar="LAYER"
    )
    queries: tuple[str, ...] = option(DEFAULT_QUERIES, "where to look from", "maps", nargs="+", metavar="X,Y")
    head: str = option("mean", "number of the head to map, or mean", "maps")

    output: str = option("affinity.png", "the picture", "output")
    json: str | None = option(None, "the numbers (default: beside the picture, .json)", "output")
