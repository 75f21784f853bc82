"""Two ranks on gloo are one rank with their global batch, and judge every image once."""

import os
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image

import knn


def write_noisy_tree(root: Path) -> Path:
    """24 images to train on and 15 to judge, of three classes whose colours overlap: no judge is right about all."""
    rng = numpy.random.default_rng(0)
    for split, count in (("train", 8), ("val", 5)):
        for channel, name in enumerate(("blue", "green", "red")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = rng.normal(120, 60, (12, 12, 3))
                pixels[..., channel] += 8
                pixels = Image.fromarray(pixels.clip(0, 255).astype(numpy.uint8)).resize((48, 48))
                pixels.save(folder / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """By network: what one rank ended with, and what each of two did."""
    folder = tmp_path_factory.mktemp("dino_ranks")
    images = write_noisy_tree(folder / "tree")
    script = Path(__file__).with_name("dino_ranks.py")
    two = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for name, launcher in (("one", []), ("two", two)):
        result = subprocess.run(
            [sys.executable, *launcher, script, folder / name, images],
            capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert result.returncode == 0, result.stdout + result.stderr
    files = ("one/{}/rank0.pth", "two/{}/rank0.pth", "two/{}/rank1.pth")
    found = {
        network: [torch.load(folder / file.format(network), weights_only=True) for file in files]
        for network in ("deit", "container")
    }
    return {**found, "folder": folder}


def test_weights_teacher_and_centre_are_those_of_one_rank(records):
    """A network without batch norms, whose statistics would be of a rank."""
    one, *ranks = (record["state"] for record in records["deit"])
    assert {"centre", "student.head.prototypes", "teacher.head.prototypes"} <= one.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(ranks[0][name], tensor, rtol=1e-4, atol=1e-5, msg=f"{name}: {{}}".format)


def test_losses_and_targets_are_those_of_one_rank(records):
    one, *ranks = records["deit"]
    for rank in ranks:
        for row, wanted in zip(rank["history"], one["history"], strict=True):
            assert row["train_loss"] == pytest.approx(wanted["train_loss"], rel=1e-5)
            for name in ("val_target_entropy", "val_mean_target_entropy", "val_deviation"):
                assert row[name] == pytest.approx(wanted[name], rel=1e-4), name
    losses = [row["train_loss"] for row in one["history"]]
    assert losses[-1] != pytest.approx(losses[0], rel=1e-2)  # it has learned something


@pytest.mark.parametrize("network", ["deit", "container"])
def test_both_ranks_end_with_the_same_and_knn_py_agrees(records, network):
    _, first, second = records[network]
    for name, tensor in first["state"].items():
        assert torch.equal(tensor, second["state"][name]), name
    last = first["history"][-1]
    for key, prefix in (("teacher", "val_"), ("student", "val_student_")):
        judgement = knn.main([
            str(records["folder"] / "two" / network / "last.pth"), "--checkpoint-key", key, "--knn-k", "5", "20",
            "--no-controls", "--num-workers", "0", "--device", "cpu",
        ])  # fmt: skip
        assert (judgement.images, judgement.bank) == (15, 24)
        assert 0 < judgement.rows[key]["knn5"] < 100  # by which one image counted twice would show
        assert judgement.rows[key] == pytest.approx({name: last[prefix + name] for name in ("knn5", "knn20", "few")})
    assert {name: second["controls"][name] for name in first["controls"]} == first["controls"]
