"""The kNN protocol, against brute force and scikit-learn."""

import math

import numpy
import pytest
import torch
import torch.nn.functional as F
from trial_runs import PROGRAMS  # noqa: F401  makes `tasks` importable

import tasks.dino.features  # isort: skip
from tasks.dino.features import Features
from tasks.dino.neighbours import accuracies, check_bank, draw_few, find_nearest, predict
from training.distributed import World
from training.errors import DataError

ONE = World(rank=0, size=1, device=torch.device("cpu"), control=None)
CLASSES = 4


def features(count, seed):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (count,), generator=generator)
    rows = torch.randn(count, 6, generator=generator) + F.one_hot(labels, 6)
    return Features(F.normalize(rows, dim=1), labels, torch.arange(count), ONE)


def brute_force(query, bank, k, temperature):
    similarities = [sum(a * b for a, b in zip(query, row, strict=True)) for row in bank.rows.tolist()]
    nearest = sorted(range(len(similarities)), key=lambda i: -similarities[i])[:k]
    votes = [0.0] * CLASSES
    for i in nearest:
        votes[bank.labels[i]] += math.exp(similarities[i] / temperature)
    return votes.index(max(votes))


@pytest.mark.parametrize("chunk", [7, 1000])
@pytest.mark.parametrize("k", [1, 5, 60])
def test_brute_force(k, chunk, monkeypatch):
    monkeypatch.setattr(tasks.dino.features, "CHUNK", chunk)
    monkeypatch.setattr("tasks.dino.neighbours.QUERIES", 11)
    queries, bank = features(30, 1), features(60, 2)
    nearest = find_nearest(queries, bank, k, draw_few(bank.labels.tolist()))
    expected = [brute_force(query, bank, k, 0.07) for query in queries.rows.tolist()]
    assert predict(nearest, k, CLASSES).tolist() == expected


def test_scikit_learns_neighbours():
    from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors

    queries, bank = features(40, 3), features(90, 4)
    found = accuracies(queries, bank, (5, 20), draw_few(bank.labels.tolist()), CLASSES)
    for k in (5, 20):
        theirs = KNeighborsClassifier(
            k, metric="cosine", algorithm="brute", weights=lambda distance: numpy.exp((1 - distance) / 0.07)
        ).fit(bank.rows.numpy(), bank.labels.numpy())
        right = (theirs.predict(queries.rows.numpy()) == queries.labels.numpy()).mean()
        assert found[f"knn{k}"] == pytest.approx(100 * right)
    distances, _ = NearestNeighbors(n_neighbors=20, metric="cosine").fit(bank.rows).kneighbors(queries.rows)
    nearest = find_nearest(queries, bank, 20, draw_few(bank.labels.tolist()))
    numpy.testing.assert_allclose(1 - nearest.similarities.numpy(), distances, atol=1e-5)


def test_few_labels_are_ten_per_class_in_fixed_draws():
    labels = [0] * 30 + [1] * 25 + [2] * 4
    drawn = draw_few(labels)
    assert torch.equal(drawn, draw_few(labels))
    for draw in range(drawn.shape[1]):
        assert numpy.bincount(numpy.asarray(labels)[drawn[:, draw].numpy()]).tolist() == [10, 10, 4]
    assert not torch.equal(drawn[:, 0], drawn[:, 1])


def test_few_label_accuracy_is_that_of_the_nearest_labelled_one(monkeypatch):
    monkeypatch.setattr(tasks.dino.features, "CHUNK", 13)
    queries, bank = features(40, 5), features(90, 6)
    few = draw_few(bank.labels.tolist())
    right = []
    for draw in range(few.shape[1]):
        rows, labels = bank.rows[few[:, draw]], bank.labels[few[:, draw]]
        right.append((labels[(queries.rows @ rows.T).argmax(1)] == queries.labels).float().mean())
    found = accuracies(queries, bank, (1,), few, CLASSES)["few"]
    assert found == pytest.approx(100 * torch.stack(right).mean().item())


def test_more_neighbours_than_images_are_refused():
    with pytest.raises(DataError, match="--knn-k 200: there are only 60 training images"):
        check_bank(60, (10, 200))
