# SPDX-License-Identifier: MIT
"""comparison.png: accuracy by epoch, one panel for each part of the images, a band where there are several seeds."""

from __future__ import annotations

from typing import BinaryIO

import numpy
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from comparison.contenders import CONTENDERS
from comparison.record import Record

# Okabe and Ito's colors, told apart with every kind of color vision; the core question has the strongest.
PALETTE = ("#D55E00", "#0072B2", "#009E73", "#E69F00", "#56B4E9", "#CC79A7", "#000000", "#8A8F98")
COLORS = dict(zip(CONTENDERS, PALETTE, strict=True))
LINES = {"pyramid": "-", "column": "--"}


def draw_comparison(file: BinaryIO, record: Record) -> None:
    """Write a PNG of the results in `record`."""
    fractions = [part for part in record.settings["fractions"] if _rows(record, part)]
    figure = Figure(figsize=(5.2 * len(fractions), 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, fraction in zip(figure.subplots(1, len(fractions), squeeze=False)[0], fractions, strict=True):
        _draw_panel(axes, record, fraction)
    figure.savefig(file, format="png", dpi=130)


def _rows(record: Record, fraction: float) -> list[dict]:
    return [row for row in record.results if row["fraction"] == fraction]


def _draw_panel(axes, record: Record, fraction: float) -> None:
    for row in sorted(_rows(record, fraction), key=lambda row: -row["mean"][-1]):
        name = row["contender"]
        mean = numpy.array(row["mean"])
        spread = numpy.array([0.0 if value is None else value for value in row["deviation"]])
        epochs = numpy.arange(1, len(mean) + 1)
        deviation = f" ± {spread[-1]:.1f}" if len(row["seeds"]) > 1 else ""
        axes.plot(
            epochs, mean, label=f"{name} {mean[-1]:.1f}{deviation} %", color=COLORS[name], linewidth=2, marker="o",
            markersize=3, linestyle=LINES[record.contenders[name]["layout"]],
        )  # fmt: skip
        axes.fill_between(epochs, mean - spread, mean + spread, color=COLORS[name], alpha=0.15, linewidth=0)
    repeats = record.settings["repeats"][record.settings["fractions"].index(fraction)]
    axes.set_title(f"{record.images[f'{fraction:g}']:,} training images")
    axes.set_xlabel("epoch" if repeats == 1 else f"epoch ({repeats} passes over the images)")
    axes.set_ylabel("top-1 accuracy, %")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylim(bottom=max(0.0, axes.get_ylim()[0]))  # a wide band may reach below
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
