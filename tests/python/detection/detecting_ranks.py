"""Started by torchrun: a run of every detector, and one of RetinaNet with a stop; records what this rank ended with.

Argument: the folder of all runs.
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from trial_runs import signalled_rank_one

import detect
from tasks.detection.options import DETECTOR_NAMES
from training.distributed import leave_world

SMALL = [
    "--train-scenes", "12", "--val-scenes", "5", "--epochs", "2", "--batch-size", "2", "--short-sides", "64",
    "--longest-side", "64", "--warmup-steps", "2", "--device", "cpu", "--model", "container", "--model-kwargs",
    "embed_dims=(8, 8, 16, 16)", "depths=(1, 0, 1, 0)", "num_heads=(1, 1, 2, 2)", "mlp_ratios=2",
]  # fmt: skip


def main(root: Path) -> None:
    for detector in DETECTOR_NAMES:
        folder = root / detector
        record(folder, detect.main(["--detector", detector, "--output-dir", str(folder), *SMALL]))

    with signalled_rank_one(4):
        detect.main(["--output-dir", str(root / "stopped"), *SMALL])
    record(root / "stopped", detect.main(["--resume", str(root / "stopped" / "last.pth"), "--device", "cpu"]))
    leave_world()


def record(folder: Path, run) -> None:
    judged = [result["image_id"] for result in run.task.judgement.results]
    content = {"state": run.model.state_dict(), "history": run.history, "judged": judged}
    torch.save(content, folder / f"rank{run.world.rank}.pth")


main(Path(sys.argv[1]))
