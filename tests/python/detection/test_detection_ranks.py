"""detect.py on two processes: every detector trains without unused parameters, which DistributedDataParallel refuses in
the second step; the ranks agree, judge every image once, and stop together."""

import collections
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tasks.detection.options import DETECTOR_NAMES

for _package in ("faster_coco_eval", "transformers", "scipy"):
    pytest.importorskip(_package, reason="needs the extra: pip install -e '.[detection]'")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """The folder of the runs of `detecting_ranks.py`."""
    folder = tmp_path_factory.mktemp("detecting_ranks")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    result = subprocess.run(
        [*launcher, Path(__file__).with_name("detecting_ranks.py"), folder],
        capture_output=True, text=True, timeout=600, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    (folder / "output").write_text(result.stdout)
    return folder


def load(root, name):
    return [torch.load(root / name / f"rank{rank}.pth", weights_only=True) for rank in (0, 1)]


@pytest.mark.parametrize("detector", DETECTOR_NAMES)
def test_both_ranks_end_with_the_same_detector(root, detector):
    first, second = load(root, detector)
    for name, tensor in first["state"].items():
        if not name.endswith(("running_mean", "running_var")):  # of the images of a rank, without --sync-bn
            assert torch.equal(tensor, second["state"][name]), name
    assert len(first["history"]) == 2 and first["history"][-1]["val_AP"] == second["history"][-1]["val_AP"]


def test_a_stop_of_one_rank_stops_both_and_loses_nothing(root):
    assert (root / "output").read_text().count("saved; continue with") == 1
    (whole, _), (stopped, _) = load(root, "retinanet"), load(root, "stopped")
    for name, tensor in whole["state"].items():
        assert torch.equal(tensor, stopped["state"][name]), name
    assert [row["train_loss"] for row in stopped["history"]] == pytest.approx(
        [row["train_loss"] for row in whole["history"]], rel=1e-12
    )


def test_every_validation_image_counts_once(root):
    """DETR gives as many objects for any image."""
    first, second = load(root, "detr")
    found = collections.Counter(first["judged"])
    assert len(found) == 5 and len(set(found.values())) == 1
    assert list(found) == sorted(found) and second["judged"] == []
