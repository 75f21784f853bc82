# SPDX-License-Identifier: MIT
"""The learning curves of a run as a picture."""

from __future__ import annotations

from typing import BinaryIO

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

TRAIN, VAL, AVERAGE = "#8a8f98", "#1f6feb", "#d9730d"


def draw_curves(file: BinaryIO, history: list[dict], title: str) -> None:
    """Write a PNG: losses on the left, top-1 accuracies on the right, one point per epoch of `history`."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    loss, accuracy = figure.subplots(1, 2)
    _plot(loss, history, "train_loss", "training (as augmented and smoothed)", TRAIN)
    _plot(loss, history, "val_loss", "validation", VAL)
    for column, label, color in (("val_top1", "validation", VAL), ("ema_top1", "averaged weights", AVERAGE)):
        values = [row[column] for row in history if row[column] is not None]
        _plot(accuracy, history, column, f"{label}, best {max(values, default=0):.2f} %", color)
    for axes, label in ((loss, "loss"), (accuracy, "top-1 accuracy, %")):
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, loc="lower right" if axes is accuracy else "upper right")
    figure.savefig(file, format="png", dpi=120)


def _plot(axes, history: list[dict], column: str, label: str, color: str) -> None:
    points = [(row["epoch"], row[column]) for row in history if row[column] is not None]
    if points:
        axes.plot(*zip(*points, strict=True), label=label, color=color, marker="o", markersize=3, linewidth=1.5)
