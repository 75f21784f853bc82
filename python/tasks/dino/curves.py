# SPDX-License-Identifier: MIT
"""The learning curves of a run as a picture: accuracies of neighbours beside the controls, and the targets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import BinaryIO

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

TEACHER, STUDENT, LOSS = "#1f6feb", "#8ab4f8", "#30343b"
CONTROLS = {"raw pixels": "#d9730d", "untrained": "#8a8f98", "untrained, norms recalibrated": "#b9bdc4"}


def draw_curves(
    file: BinaryIO, history: list[dict], controls: Mapping[str, Mapping[str, float]], knn: str, title: str
) -> None:
    """Write a PNG of the epochs in `history`; `knn` names the accuracy that is drawn beside that with few labels."""
    figure = Figure(figsize=(13, 4), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    all_labels, few_labels, targets = figure.subplots(1, 3)
    for axes, name, label in (
        (all_labels, knn, f"{knn.removeprefix('knn')} nearest neighbours, %"),
        (few_labels, "few", "nearest of 10 labelled per class, %"),
    ):
        _plot(axes, history, f"val_{name}", "teacher", TEACHER)
        _plot(axes, history, f"val_student_{name}", "student", STUDENT)
        for control, accuracies in controls.items():
            words = f"{control} {accuracies[name]:.1f}"
            axes.axhline(accuracies[name], color=CONTROLS[control], linestyle="--", linewidth=1.2, label=words)
        axes.set_ylabel(label)
    _plot(targets, history, "train_loss", "loss", LOSS)
    _plot(targets, history, "train_mean_target_entropy", "entropy of the mean target", TEACHER)
    _plot(targets, history, "train_target_entropy", "entropy of a target", STUDENT)
    targets.set_ylabel("nats, in training")
    for axes in (all_labels, few_labels, targets):
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(facecolor="white", framealpha=0.85, edgecolor="none", fontsize=8)
    figure.savefig(file, format="png", dpi=120)


def _plot(axes, history: list[dict], column: str, label: str, color: str) -> None:
    points = [(row["epoch"], row[column]) for row in history if row[column] is not None]
    if points:
        epochs, values = zip(*points, strict=True)
        label = f"{label}, last {values[-1]:.2f}"
        axes.plot(epochs, values, label=label, color=color, marker="o", markersize=3, linewidth=1.5)
