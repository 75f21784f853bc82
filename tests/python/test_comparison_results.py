"""What is made of finished runs: numbers known beforehand, a table that shows them, a picture that draws them."""

import io
import math

import numpy
import pytest
from PIL import Image
from trial_runs import PROGRAMS  # noqa: F401  makes `comparison` importable

from comparison.picture import COLORS, draw_comparison  # isort: skip
from comparison.record import Record  # isort: skip
from comparison.results import summarize  # isort: skip
from comparison.table import milestones, write_table  # isort: skip


def run(contender, seed, accuracies, fraction=0.2):
    rates = (50.0, 100.0, 120.0, 110.0)
    history = [
        {"val_top1": top1, "images_per_second": rate} for top1, rate in zip(accuracies, rates, strict=True)
    ]  # fmt: skip
    return {"contender": contender, "fraction": fraction, "seed": seed, "history": history}


RUNS = [
    run("mix", 0, [30, 40, 50, 60]),
    run("static", 0, [35, 40, 41, 44]),
    run("mix", 1, [32, 44, 54, 62]),
    run("static", 1, [33, 42, 45, 46]),
    run("dynamic", 0, [20, 30, 40, 61]),
    run("dynamic", 0, [10, 11, 12, 13], fraction=0.02),
]


@pytest.fixture
def record():
    contender = dict(layout="pyramid", affinity="dynamic", equalized="MLP ratio 4", parameters=913_295)
    names = ("mix", "static", "dynamic")
    return Record(
        "comparison.json",
        settings=dict(fractions=[0.2, 0.02], repeats=[1, 3], batch_size=64, lr=2e-3, amp_dtype="float32"),
        epochs=4,
        conditions=[dict(device="a CPU", threads=2, torch="2.15", timm="1.0", container_kernels="0.1")],
        contenders={name: dict(contender, multiply_adds=20_700_000) for name in names},
        images={"validation": 2000, "0.2": 10_000, "0.02": 1000},
        runs=RUNS,
        results=summarize(RUNS),
    )


def test_means_and_differences_by_seed():
    mix, static, dynamic, few = summarize(RUNS)
    assert (mix["contender"], mix["seeds"], mix["mean"], mix["final"]) == ("mix", [0, 1], [31, 42, 52, 61], [60, 62])
    assert mix["deviation"][3] == pytest.approx(math.sqrt(2))
    assert mix["ahead"] is None and mix["reached"] is None
    # 60 − 44 and 62 − 46: less spread than either, since seeds are paired
    assert static["ahead"] == {"mean": 16.0, "deviation": 0.0, "seeds": 2}
    assert static["reached"] == 3  # 52 is the mix's first mean above 45
    assert static["images_per_second"] == 110  # without the first epochs, in which workers start
    assert dynamic["ahead"] == {"mean": -1.0, "deviation": None, "seeds": 1}
    assert dynamic["reached"] is None and dynamic["deviation"] == [None] * 4
    assert (few["fraction"], few["ahead"], few["mean"]) == (0.02, None, [10, 11, 12, 13])


def test_the_table_shows_them(record):
    table = write_table(record)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("| ")]
    heads = [row for row in rows if row[0] == "network"]
    assert len(heads) == 2 and heads[0][4:8] == ["top-1 after 1", "2", "3", "4 epochs"]
    by_name = {row[0]: row for row in rows[: rows.index(heads[1], 1)]}
    assert by_name["mix (pyramid)"] == [
        "mix (pyramid)", "dynamic", "0.913 M", "20.7", "31.0 ± 1.4", "42.0 ± 2.8", "52.0 ± 2.8", "**61.0 ± 1.4**",
        "", "", "2", "110",
    ]  # fmt: skip
    assert by_name["static (pyramid)"][7:] == ["**45.0 ± 1.4**", "+16.0 ± 0.0", "epoch 3", "2", "110"]
    assert by_name["dynamic (pyramid)"][7:] == ["**61.0**", "−1.0", "no epoch", "1", "110"]
    assert "**10,000 training images** (20 %)" in table and "**1,000 training images** (2 %)" in table
    assert "1,000 training images, 3 passes an epoch; judged on 2,000 others" in table
    assert "mix: MLP ratio 4; static: MLP ratio 4" in table
    assert heads[0][8:] == ["mix − it (same seeds)", "mix reaches it in", "seeds", "training images/s"]
    assert "learning rate 0.002, float32, the same for every network. a CPU, 2 CPU threads, torch 2.15, timm" in table
    assert "Diverged" not in table and "other runs:" not in table


def test_the_table_names_every_machine_and_what_has_diverged(record):
    record.conditions.append(dict(record.conditions[0], device="a GPU", threads=1))
    record.diverged = [dict(contender="deit", fraction=0.02, seed=1, epoch=3)]
    table = write_table(record)
    assert "a CPU, 2 CPU threads, " in table and "other runs: a GPU, 1 CPU thread, torch" in table
    few = table[table.index("**1,000 training images**") :]
    assert "Diverged on 2 %, and so not in the table: deit with seed 1, in epoch 3." in few
    assert table.count("Diverged") == 1


def test_milestones_are_the_quarters():
    assert milestones(2) == [1, 2] and milestones(5) == [1, 2, 4, 5] and milestones(40) == [1, 10, 20, 30, 40]


def test_the_picture_draws_every_network_in_its_panel(record):
    file = io.BytesIO()
    draw_comparison(file, record)
    with Image.open(file) as picture:
        assert picture.format == "PNG" and picture.width >= 1000
        pixels = numpy.asarray(picture.convert("RGB")).astype(int)
    left, right = numpy.array_split(pixels, 2, axis=1)

    def drawn(panel, name):
        color = [int(COLORS[name][i : i + 2], 16) for i in (1, 3, 5)]
        return (abs(panel - color).sum(-1) < 12).sum()

    for name in ("mix", "static", "dynamic"):
        assert drawn(left, name) > 200, name
    assert drawn(right, "dynamic") > 200 and drawn(right, "mix") == 0
