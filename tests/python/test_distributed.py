"""Two processes on gloo: the same weights on both, every validation image counted once, stopping together."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import validate


@pytest.fixture(scope="module")
def records(images, tmp_path_factory):
    """What `two_ranks.py` left: (whole run, stopped and continued run) × (rank 0, rank 1), its folder, its output."""
    folder = tmp_path_factory.mktemp("two_ranks")
    runs = [folder / name for name in ("whole", "parts")]
    script = Path(__file__).with_name("two_ranks.py")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    result = subprocess.run(
        [*launcher, script, *runs, images],
        capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    ranks = [[torch.load(run / f"rank{rank}.pth", weights_only=True) for rank in (0, 1)] for run in runs]
    return ranks, folder, result.stdout


def assert_same_state(first, second):
    for name, tensor in first["state"].items():
        assert torch.equal(tensor, second["state"][name]), name


def test_both_ranks_end_with_the_same_model(records):
    for ranks in records[0]:
        assert_same_state(*ranks)


def test_a_stop_of_one_rank_stops_both_and_loses_nothing(records):
    (whole, _), (parts, _) = records[0]
    assert records[2].count("saved; continue with") == 1
    assert_same_state(whole, parts)
    assert [row["train_loss"] for row in parts["history"]] == pytest.approx(
        [row["train_loss"] for row in whole["history"]], rel=1e-12
    )


def test_every_validation_image_counts_once(records):
    (first, second), _ = records[0]
    row = first["history"][-1]
    assert row["val_top1"] == second["history"][-1]["val_top1"]
    alone = validate.main(
        ["--checkpoint", str(records[1] / "whole" / "last.pth"), "--num-workers", "0", "--device", "cpu"]
    )
    assert (alone.metrics.images, alone.metrics.top1) == (15, row["val_top1"])
    assert alone.metrics.loss == pytest.approx(row["val_loss"], rel=1e-5)


def test_one_rank_prints(records):
    assert records[2].count("epoch 1/2   train loss") == 2  # the whole run and the stopped one
