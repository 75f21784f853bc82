# SPDX-License-Identifier: MIT
"""From the runs to numbers: means and deviations over seeds, paired differences, when a level is reached."""

from __future__ import annotations

import numpy

REFERENCE = "mix"


def summarize(runs: list[dict]) -> list[dict]:
    """One entry of plain values for each contender and part of the images, in the order they first occur.

    Accuracies are top-1 in percent. The final one is that of the last epoch, not the best, which would be chosen on
    the images it is judged on. Deviations are of the sample, None for one seed. `ahead` is the reference's final
    accuracy minus this one's, seed by seed; `reached` the first epoch after which the reference's mean is at least this
    one's final mean, over the seeds of both, or None.
    """
    groups: dict[tuple, dict[int, list[dict]]] = {}
    for run in runs:
        groups.setdefault((run["contender"], run["fraction"]), {})[run["seed"]] = run["history"]
    return [
        {
            "contender": contender,
            "fraction": fraction,
            "seeds": sorted(histories),
            **_describe(histories),
            **_compare(groups.get((REFERENCE, fraction), {}), histories, is_reference=contender == REFERENCE),
        }
        for (contender, fraction), histories in groups.items()
    ]


def deviation(values) -> float | None:
    """The sample's standard deviation, None for one value."""
    return float(numpy.std(values, ddof=1)) if len(values) > 1 else None


def _curves(histories: dict[int, list[dict]], seeds) -> numpy.ndarray:
    """Accuracies (seeds, epochs)."""
    return numpy.array([[row["val_top1"] for row in histories[seed]] for seed in seeds])


def _describe(histories: dict[int, list[dict]]) -> dict:
    curves = _curves(histories, sorted(histories))
    rates = [row["images_per_second"] for history in histories.values() for row in history[1:]]
    return {
        "mean": curves.mean(axis=0).tolist(),
        "deviation": [deviation(column) for column in curves.T],
        "final": curves[:, -1].tolist(),
        "images_per_second": float(numpy.median(rates)),
    }


def _compare(reference: dict[int, list[dict]], histories: dict[int, list[dict]], is_reference: bool) -> dict:
    seeds = sorted(set(reference) & set(histories))
    if is_reference or not seeds:
        return {"ahead": None, "reached": None}
    theirs, ours = _curves(reference, seeds), _curves(histories, seeds)
    differences = (theirs - ours)[:, -1]
    there = numpy.flatnonzero(theirs.mean(axis=0) >= ours.mean(axis=0)[-1])
    return {
        "ahead": {"mean": float(differences.mean()), "deviation": deviation(differences), "seeds": len(seeds)},
        "reached": int(there[0]) + 1 if len(there) else None,
    }
