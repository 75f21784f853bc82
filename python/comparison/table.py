# SPDX-License-Identifier: MIT
"""comparison.md: the conditions and one table for each part of the images."""

from __future__ import annotations

from comparison.record import Record

EXPLANATION = (
    "Top-1 accuracies in percent; mean ± deviation over seeds. *mix − it*, at the end, and *mix reaches it in*, "
    "the first epoch after which the mix's mean is at least the other's final one, take only the seeds that both have: "
    "the columns of accuracies may give other numbers. *training images/s*: with loading, without evaluation and the "
    "first epoch. Networks have equally many parameters, but not multiply-adds, which depend on the layout."
)


def milestones(epochs: int) -> list[int]:
    """The epochs whose accuracies are shown: the first, quarters, the last."""
    return sorted({1, *(max(1, round(epochs * quarter / 4)) for quarter in (1, 2, 3)), epochs})


def write_table(record: Record) -> str:
    """Markdown for the results in `record`."""
    parts = [_conditions(record)]
    for fraction in record.settings["fractions"]:
        rows = [row for row in record.results if row["fraction"] == fraction]
        if rows:
            images = record.images[f"{fraction:g}"]
            parts.append(f"**{images:,} training images** ({100 * fraction:g} %)\n\n{_table(record, rows)}")
        lost = [run for run in record.diverged if run["fraction"] == fraction]
        if lost:
            words = (f"{run['contender']} with seed {run['seed']}, in epoch {run['epoch']}" for run in lost)
            parts.append(f"Diverged on {100 * fraction:g} %, and so not in the table: {'; '.join(words)}.")
    parts += [EXPLANATION, _equalized(record)]
    return "\n\n".join(parts) + "\n"


def _conditions(record: Record) -> str:
    settings = record.settings
    repeats = dict(zip(settings["fractions"], settings["repeats"], strict=True))
    passes = "; ".join(
        f"{record.images[f'{part:g}']:,} training images, {count} pass{'es' if count > 1 else ''} an epoch"
        for part, count in repeats.items()
    )
    return (
        f"{passes}; judged on {record.images['validation']:,} others. {record.epochs} epochs, batch "
        f"{settings['batch_size']}, AdamW, peak learning rate {settings['lr']:g}, {settings['amp_dtype']}, the same "
        f"for every network. {'; other runs: '.join(map(_machine, record.conditions))}."
    )


def _machine(conditions: dict) -> str:
    threads = conditions["threads"]
    return (
        f"{conditions['device']}, {threads} CPU thread{'s' if threads > 1 else ''}, torch {conditions['torch']}, "
        f"timm {conditions['timm']}, container_kernels {conditions['container_kernels']}"
    )


def _table(record: Record, rows: list[dict]) -> str:
    shown = milestones(record.epochs)
    titles = [
        "network", "affinity", "parameters", "M multiply-adds",
        *(f"top-1 after {epoch}" if epoch == shown[0] else f"{epoch}" for epoch in shown[:-1]),
        f"{shown[-1]} epochs", "mix − it (same seeds)", "mix reaches it in", "seeds", "training images/s",
    ]  # fmt: skip
    lines = [titles, ["---"] * len(titles)]
    for row in rows:
        contender = record.contenders[row["contender"]]
        accuracies = [_percent(row["mean"][epoch - 1], row["deviation"][epoch - 1]) for epoch in shown]
        ahead = row["ahead"]
        lines.append([
            f"{row['contender']} ({contender['layout']})",
            contender["affinity"],
            f"{contender['parameters'] / 1e6:.3f} M",
            f"{contender['multiply_adds'] / 1e6:.1f}",
            *accuracies[:-1],
            f"**{accuracies[-1]}**",
            _percent(ahead["mean"], ahead["deviation"], sign="+") if ahead else "",
            "" if ahead is None else f"epoch {row['reached']}" if row["reached"] else "no epoch",
            str(len(row["seeds"])),
            f"{row['images_per_second']:.0f}",
        ])  # fmt: skip
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _percent(mean: float, deviation: float | None, sign: str = "") -> str:
    number = f"{mean:{sign}.1f}".replace("-", "−")
    return number if deviation is None else f"{number} ± {deviation:.1f}"


def _equalized(record: Record) -> str:
    names = {row["contender"] for row in record.results}
    return "Brought to the same number of parameters by: " + "; ".join(
        f"{name}: {contender['equalized']}" for name, contender in record.contenders.items() if name in names
    ) + "."  # fmt: skip
