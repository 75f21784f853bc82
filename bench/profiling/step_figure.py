# SPDX-License-Identifier: MIT
"""Draws where a step spends its time, before and after, from results that `step_profile` kept.

    python -m bench.profiling.step_figure              docs/step_profile.png from results/profiles/{before,after}.json
    python -m bench.profiling.step_figure --measure    profiles container_light as it is now into after.json, and draws

Left what was measured on a CPU, right what is predicted for an H100 from bytes and FLOPs; above inference, below a
training step.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bench import ROOT
from bench.profiling import step_profile
from bench.profiling.network_parts import PARTS
from bench.profiling.step_profile import Profile

PROFILES = ROOT / "bench" / "results" / "profiles"
FIGURE = ROOT / "docs" / "step_profile.png"
MODEL = "container_light"
# By the label of a profile, in the order of the bars.
BARS = {"eager": "plain PyTorch", "before": "before", "after": "after"}
# What little there is goes together.
GROUPS = {
    "patch embedding": "embeddings",
    "position embedding": "embeddings",
    "loss": "head, loss",
    "head": "head, loss",
}


def draw(profiles: Sequence[Profile], threads: str, path: Path) -> None:
    """One panel for inference and training step, measured and predicted; one bar a network, one color a part."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    groups = list(dict.fromkeys(GROUPS.get(part, part) for part in PARTS))
    colors = dict(zip(groups, pyplot.get_cmap("tab10").colors, strict=False))
    figure, panels = pyplot.subplots(2, 2, figsize=(10, 7), layout="constrained")
    for row, training in zip(panels, (False, True), strict=True):
        for panel, measured in zip(row, (True, False), strict=True):
            bars = {p.label: p for p in profiles if p.training == training and (p.step_ms is not None) == measured}
            bars = {label: bars[label] for label in BARS if label in bars}
            _draw_panel(panel, bars, measured, colors)
    handles = [pyplot.Rectangle((0, 0), 1, 1, color=color) for color in colors.values()]
    figure.legend(handles[::-1], list(colors)[::-1], loc="outside right center", frameon=False)
    figure.suptitle(f"{MODEL}, 224×224: where the time of a step goes (CPU: {threads} thread{'s' * (threads != '1')})")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _draw_panel(panel, bars: dict[str, Profile], measured: bool, colors: dict[str, tuple]) -> None:
    totals = dict.fromkeys(bars, 0.0)
    names = [BARS[label] for label in bars]
    for group, color in colors.items():
        heights = [_milliseconds(profile, group, measured) for profile in bars.values()]
        look = {"color": color} if measured else {"color": color, "hatch": "///", "edgecolor": "white", "linewidth": 0}
        panel.bar(names, heights, 0.6, list(totals.values()), **look)
        totals = {label: total + height for (label, total), height in zip(totals.items(), heights, strict=True)}
    for x, (label, total) in enumerate(totals.items()):
        text = f"{total:.0f} ms" if total > 99 else f"{total:.1f} ms"
        if label != "eager" and "eager" in totals:
            text += f"\n{totals['eager'] / total:.2f}× as fast"
        panel.annotate(text, (x, total), (0, 3), textcoords="offset points", ha="center", fontsize=9)
    any_bar = next(iter(bars.values()))
    what = "Training step" if any_bar.training else "Inference"
    how = "measured" if measured else "PREDICTED from bytes and FLOPs"
    device = any_bar.device.removesuffix(", described").replace("NVIDIA H100 80GB HBM3", "H100")
    panel.set_title(f"{what}, {how}\n{device}, {any_bar.dtype}, batch {any_bar.batch}", fontsize=10)
    panel.set_ylabel("ms")
    panel.set_ylim(0, 1.2 * max(totals.values()))
    panel.spines[["top", "right"]].set_visible(False)


def _milliseconds(profile: Profile, group: str, measured: bool) -> float:
    rows = [row for row in profile.rows if GROUPS.get(row.part, row.part) == group]
    return sum(row.measured_ms if measured else row.predicted_ms for row in rows)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, default=PROFILES / "before.json")
    parser.add_argument("--after", type=Path, default=PROFILES / "after.json")
    parser.add_argument("--output", type=Path, default=FIGURE)
    parser.add_argument("--measure", action="store_true", help="make --after first")
    parser.add_argument("--threads", default="1", help="to measure with; with 1 the time is that of the thread")
    options = parser.parse_args(arguments)
    if options.measure:
        what = ["--models", MODEL, "--label", "after", "--output", str(options.after)]
        step_profile.main([*what, "--time", "--device", "cpu", "--threads", options.threads, "--repeats", "5"])
    before, after = step_profile.load(options.before), step_profile.load(options.after)
    profiles = [p for p in before["profiles"] if p.label == "before"]
    profiles += [p for p in after["profiles"] if p.label in ("eager", "after")]
    threads = after["conditions"]["after"]["threads"]
    draw([p for p in profiles if p.model == MODEL], threads, options.output)
    print(f"wrote {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
