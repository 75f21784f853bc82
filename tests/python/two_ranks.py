"""Started by torchrun: trains undisturbed, trains with a stop, continues; records what this rank ended with.

Arguments: the folder of the whole run, the folder of the stopped one, the image tree.
"""

import sys
from pathlib import Path

import torch
from trial_runs import signalled_rank_one, small_run  # before `train`: it knows where the programs are

import train  # isort: skip
from training.distributed import leave_world  # isort: skip


def main(whole: Path, parts: Path, images: Path) -> None:
    record(whole, train.main(small_run(images, whole, "--epochs", "2")))

    with signalled_rank_one(9):
        train.main(small_run(images, parts, "--epochs", "2"))
    record(parts, train.main(["--resume", str(parts / "last.pth"), "--device", "cpu"]))
    leave_world()


def record(folder: Path, run) -> None:
    ema = {f"ema.{name}": tensor for name, tensor in run.ema.module.state_dict().items()}
    state = {**run.model.state_dict(), **ema}
    torch.save({"state": state, "history": run.history}, folder / f"rank{run.world.rank}.pth")


main(*map(Path, sys.argv[1:]))
