"""Started by torchrun: a run of every detector, and one of RetinaNet with a stop; records what this rank ended with.

Argument: the folder of all runs.
"""

import signal
import sys
from pathlib import Path

import torch

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[3] / "python")]

import detect  # noqa: E402
from tasks.detection.options import DETECTOR_NAMES  # noqa: E402
from training.distributed import leave_world  # noqa: E402
from training.interrupt import Interrupted, StopGuard  # noqa: E402

SMALL = [
    "--train-scenes", "12", "--val-scenes", "5", "--epochs", "2", "--batch-size", "2", "--short-sides", "64",
    "--longest-side", "64", "--warmup-steps", "2", "--device", "cpu", "--model", "container", "--model-kwargs",
    "embed_dims=(8, 8, 16, 16)", "depths=(1, 0, 1, 0)", "num_heads=(1, 1, 2, 2)", "mlp_ratios=2",
]  # fmt: skip


def main(root: Path) -> None:
    for detector in DETECTOR_NAMES:
        folder = root / detector
        record(folder, detect.main(["--detector", detector, "--output-dir", str(folder), *SMALL]))

    check, calls = StopGuard.check, iter(range(4, -1, -1))

    def counting_check(self, batch=None):
        # Only rank 1 is signalled; rank 0 has to hear of it.
        if next(calls, 0) == 0 and self.world.rank == 1:
            self.signum = signal.SIGTERM
        check(self, batch)

    StopGuard.check = counting_check
    try:
        detect.main(["--output-dir", str(root / "stopped"), *SMALL])
    except Interrupted:
        StopGuard.check = check
    record(root / "stopped", detect.main(["--resume", str(root / "stopped" / "last.pth"), "--device", "cpu"]))
    leave_world()


def record(folder: Path, run) -> None:
    judged = [result["image_id"] for result in run.task.judgement.results]
    content = {"state": run.model.state_dict(), "history": run.history, "judged": judged}
    torch.save(content, folder / f"rank{run.world.rank}.pth")


main(Path(sys.argv[1]))
