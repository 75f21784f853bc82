# SPDX-License-Identifier: MIT
"""The weighted k-nearest-neighbour classifier by which self-supervised features are judged (Wu et al., CVPR 2018).

With rows of norm 1, q of an image and b of the bank: the k nearest have the largest q·b, and each votes for its label
with exp(q·b / temperature). Exact: every image meets the whole bank, in chunks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy
import torch
from torch import Tensor

from tasks.dino.features import Features, Images
from training.errors import DataError

NEIGHBOURS = (10, 20, 100, 200)
TEMPERATURE = 0.07
QUERIES = 1024  # images that meet a chunk of the bank together
FEW, DRAWS = 10, 10  # labelled images per class, and how many times they are drawn


@dataclasses.dataclass(frozen=True)
class Nearest:
    """Of each image (N,): similarities and labels of its nearest in the bank (N, k), the nearest first, and whether the
    single nearest among few labelled ones is of its class, once per draw (N, draws)."""

    similarities: Tensor
    labels: Tensor
    few_right: Tensor


def check_bank(images: int, ks: Sequence[int]) -> None:
    """Raises DataError unless the bank has as many images as neighbours are asked for."""
    if images < max(ks):
        raise DataError(f"--knn-k {max(ks)}: there are only {images} training images to find neighbours among")


def draw_few(labels: Sequence[int]) -> Tensor:
    """Which of the bank's images are labelled in each draw, bool (N, DRAWS): `FEW` of each class, or all it has."""
    labels = numpy.asarray(labels)
    drawn = torch.zeros(len(labels), DRAWS, dtype=torch.bool)
    for draw in range(DRAWS):
        rng = numpy.random.default_rng(draw)
        for label in numpy.unique(labels):
            of_class = numpy.flatnonzero(labels == label)
            drawn[rng.permutation(of_class)[:FEW], draw] = True
    return drawn


def draw_few_of(bank: Images) -> Tensor:
    """`draw_few` among the images of a bank, by their numbers in its source."""
    numbers = bank.all_numbers()
    drawn = draw_few([bank.source.labels[number] for number in numbers])
    few = torch.zeros(len(bank.source.labels), drawn.shape[1], dtype=torch.bool)
    few[numbers] = drawn
    return few


@torch.no_grad()
def find_nearest(queries: Features, bank: Features, k: int, few: Tensor) -> Nearest:
    """The k nearest of the bank, over all ranks, for the queries of this one.

    Args:
        few: (images of the bank's source, draws) of `draw_few`, by the numbers of the bank's rows.
    """
    few = few.to(queries.rows.device)
    found = [_Found(rows, k, few.shape[1]) for rows in queries.rows.split(QUERIES)]
    for rows, labels, numbers in bank.chunks():
        labelled = [few[numbers, draw].nonzero()[:, 0] for draw in range(few.shape[1])]
        for part in found:
            part.look_at(rows, labels, labelled)
    few_labels = torch.cat([part.few_labels for part in found])
    return Nearest(
        torch.cat([part.similarities for part in found]),
        torch.cat([part.labels for part in found]),
        few_labels == queries.labels[:, None],
    )


class _Found:
    """What some queries have met so far."""

    def __init__(self, queries: Tensor, k: int, draws: int):
        self.queries, self.k = queries, k
        self.similarities = queries.new_empty(len(queries), 0)
        self.labels = queries.new_empty(len(queries), 0, dtype=torch.long)
        self.few_similarities = queries.new_full((len(queries), draws), -torch.inf)
        self.few_labels = queries.new_full((len(queries), draws), -1, dtype=torch.long)

    def look_at(self, rows: Tensor, labels: Tensor, labelled: list[Tensor]) -> None:
        """Take in rows of the bank; `labelled` are the places in them of the few images, per draw."""
        similarities = self.queries @ rows.T
        for draw, places in enumerate(labelled):
            if len(places):
                value, place = similarities[:, places].max(dim=1)
                nearer = value > self.few_similarities[:, draw]
                self.few_similarities[nearer, draw] = value[nearer]
                self.few_labels[nearer, draw] = labels[places][place][nearer]
        candidates = torch.cat([self.similarities, similarities], dim=1)
        names = torch.cat([self.labels, labels.expand(len(self.queries), -1)], dim=1)
        self.similarities, places = candidates.topk(min(self.k, candidates.shape[1]), dim=1)
        self.labels = names.gather(1, places)


def predict(nearest: Nearest, k: int, classes: int, temperature: float = TEMPERATURE) -> Tensor:
    """The class (N,) with the most votes of the k nearest; of classes with as many, the first."""
    votes = (nearest.similarities[:, :k] / temperature).exp()
    totals = votes.new_zeros(len(votes), classes).scatter_add_(1, nearest.labels[:, :k], votes)
    return totals.argmax(dim=1)


def accuracies(
    queries: Features, bank: Features, ks: Sequence[int], few: Tensor, classes: int, temperature: float = TEMPERATURE
) -> dict[str, float]:
    """Percent right over all ranks: `knn10`, … for each k, and `few`, the nearest of `FEW` labelled per class."""
    nearest = find_nearest(queries, bank, max(ks), few)
    right = [(predict(nearest, k, classes, temperature) == queries.labels).sum() for k in ks]
    right.append(nearest.few_right.double().mean(dim=1).sum() if len(queries.rows) else torch.zeros(()))
    counts = torch.stack([value.double().cpu() for value in right] + [torch.tensor(float(len(queries.rows))).double()])
    *totals, images = queries.world.sum(counts).tolist()
    names = [*(f"knn{k}" for k in ks), "few"]
    return {name: 100 * total / images for name, total in zip(names, totals, strict=True)}
