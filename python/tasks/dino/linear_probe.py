# SPDX-License-Identifier: MIT
"""A linear classifier on features that stay as they are."""

from __future__ import annotations

import numpy
import torch
from torch import nn

from tasks.dino.features import Features, mean_of
from training.randomness import seed_everything

EPOCHS, BATCH, RATE, MOMENTUM = 100, 1024, 0.3, 0.9  # of SGD


def linear_accuracy(queries: Features, bank: Features, classes: int) -> float:
    """Percent of the queries right by multinomial logistic regression on the bank, over all ranks.

    On a CPU scikit-learn's, to convergence, on a GPU SGD with a cosine. Features are standardized by the bank. Each
    rank fits the same classifier and judges its own images.
    """
    mean = mean_of(bank)
    scale = mean_of(_squares(bank, mean)).sqrt().clamp_min(1e-6)
    rows, labels = (torch.cat(parts) for parts in list(zip(*bank.chunks(), strict=True))[:2])
    rows, own = ((x - mean.float()) / scale.float() for x in (rows, queries.rows))
    fit = _fit_sgd if rows.device.type == "cuda" else _fit_exactly
    right = (fit(rows, labels, own, classes) == queries.labels).sum()
    right, count = queries.world.sum(torch.tensor([float(right), float(len(own))])).tolist()
    return 100 * right / count


def _squares(features: Features, mean: torch.Tensor) -> Features:
    return Features((features.rows - mean.float()) ** 2, features.labels, features.numbers, features.world)


def _fit_exactly(rows: torch.Tensor, labels: torch.Tensor, queries: torch.Tensor, classes: int) -> torch.Tensor:
    from sklearn.linear_model import LogisticRegression

    if not len(queries):
        return labels[:0]
    classifier = LogisticRegression(max_iter=2000).fit(rows.numpy(), labels.numpy())
    return torch.from_numpy(classifier.predict(queries.numpy()).astype(numpy.int64))


def _fit_sgd(rows: torch.Tensor, labels: torch.Tensor, queries: torch.Tensor, classes: int) -> torch.Tensor:
    seed_everything(0)
    classifier = nn.Linear(rows.shape[1], classes, device=rows.device)
    nn.init.zeros_(classifier.weight)
    steps = EPOCHS * -(-len(rows) // BATCH)
    optimizer = torch.optim.SGD(classifier.parameters(), RATE, MOMENTUM)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(rows), device=rows.device).split(BATCH):
            optimizer.zero_grad()
            nn.functional.cross_entropy(classifier(rows[batch]), labels[batch]).backward()
            optimizer.step()
            scheduler.step()
    with torch.no_grad():
        return classifier(queries).argmax(dim=1)
