# SPDX-License-Identifier: MIT
"""The learning curves of a run as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import BinaryIO

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

PRECISIONS = {
    "AP": ("boxes", "#1f6feb"),
    "AP50": ("boxes, IoU 0.5", "#8ab4f8"),
    "mask_AP": ("masks", "#d9730d"),
    "mask_AP50": ("masks, IoU 0.5", "#f0b27a"),
}


def draw_curves(file: BinaryIO, history: list[dict], parts: Sequence[str], title: str) -> None:
    """Write a PNG: training losses by name on the left, average precisions on the right, per epoch of `history`."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    losses, precisions = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in history]
    for name in ("loss", *parts):
        style = {"color": "#30343b", "linewidth": 2} if name == "loss" else {"linewidth": 1.2}
        values = [row[f"train_{name}"] for row in history]
        losses.plot(epochs, values, label="all" if name == "loss" else name, marker="o", markersize=3, **style)
    for name, (label, colour) in PRECISIONS.items():
        points = [(row["epoch"], row[f"val_{name}"]) for row in history if row.get(f"val_{name}") is not None]
        if points:
            evaluated, values = zip(*points, strict=True)
            label = f"{label}, best {max(values):.3f}"
            precisions.plot(evaluated, values, label=label, color=colour, marker="o", markersize=3, linewidth=1.5)
    precisions.set_ylim(0, 1)
    for axes, label in ((losses, "training loss"), (precisions, "average precision")):
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, loc="lower right" if axes is precisions else "upper right", fontsize=8)
    figure.savefig(file, format="png", dpi=120)
