# SPDX-License-Identifier: MIT
"""Training on a part of the images: by class, seeded, and nested, so that a tenth is part of every half."""

from __future__ import annotations

from collections.abc import Sequence

import numpy
from PIL import Image

from labelled_images.sources import Source
from tasks.classification.options import Options

VALIDATION_SEED = 0
"""Which images a part of the validation set holds does not depend on --seed: all runs are judged on the same."""


class SubsetSource:
    """The images `indices` of another source, in this order; an index may occur several times."""

    def __init__(self, source: Source, indices: Sequence[int]):
        self.source, self.indices = source, indices
        self.name, self.classes = source.name, source.classes
        self.labels = [source.labels[index] for index in indices]

    @property
    def in_memory(self) -> bool:
        """See `Source.in_memory`."""
        return self.source.in_memory

    def read(self, index: int) -> Image.Image:
        """See `Source.read`."""
        return self.source.read(self.indices[index])

    def identify(self, index: int) -> tuple[str, int]:
        """See `Source.identify`."""
        return self.source.identify(self.indices[index])


def select_images(sources: tuple[Source, Source], options: Options) -> tuple[Source, Source]:
    """The training and validation images that --train-fraction and --val-fraction leave."""
    train, val = sources
    train = take_fraction(train, options.train_fraction, options.seed)
    return train, take_fraction(val, options.val_fraction, VALIDATION_SEED)


def repeat_images(source: Source, times: int) -> Source:
    """An epoch of several passes: --epoch-repeats."""
    return SubsetSource(source, list(range(len(source.labels))) * times) if times > 1 else source


def take_fraction(source: Source, fraction: float, seed: int) -> Source:
    """`fraction` of every class (rounded, at least one image), chosen by `seed`; less is always part of more."""
    if fraction == 1:
        return source
    labels = numpy.asarray(source.labels)
    chosen = []
    for number in range(len(source.classes)):
        members = numpy.flatnonzero(labels == number)
        # a beginning of an order that does not depend on the fraction
        order = numpy.random.default_rng([seed, number]).permutation(members)
        chosen.append(order[: max(1, round(fraction * len(members)))])
    return SubsetSource(source, numpy.sort(numpy.concatenate(chosen)).tolist())
