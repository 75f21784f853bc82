"""Started by torchrun: gradients of steps of several batches on two ranks, and whole runs; records what a rank saw.

Argument: the folder for the records.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from angles import AngleOptions, angle_run, build_run, main

from training.distributed import join_world, leave_world
from training.engine import add_gradients, take_batches
from training.interrupt import StopGuard

OPTIONS = dict(images=44, batch_size=4, anneal=False, num_workers=0, device="cpu", model_ema=False)


def record(folder: Path) -> None:
    world = join_world("cpu")
    run = build_run(AngleOptions(**OPTIONS, accumulate_steps=2), world, StopGuard(world), "unused")
    reductions = []
    run.network.register_comm_hook((world.size, reductions), count_and_average)
    run.network.train()
    batches, steps = iter(run.task.loader), []
    for step in range(run.steps):
        taken = take_batches(run, batches, step)
        add_gradients(run, taken, step)
        gradients = [parameter.grad.clone() for parameter in run.model.parameters()]
        steps.append({"batches": taken, "gradients": gradients, "reductions": len(reductions)})
    weights = run.model.state_dict()

    runs = {}
    for name, options in (("accumulated", ()), ("large", ("--batch-size", "8", "--accumulate-steps", "1"))):
        trained = main(angle_run(folder / name, "--images", "48", "--no-anneal", *options))
        runs[name] = {"weights": trained.model.state_dict(), "history": trained.history}
    torch.save({"weights": weights, "steps": steps, **runs}, folder / f"rank{world.rank}.pth")
    leave_world()


def count_and_average(state, bucket):
    size, reductions = state
    reductions.append(bucket.index())
    return dist.all_reduce(bucket.buffer().div_(size), async_op=True).get_future().then(lambda done: done.value()[0])


record(Path(sys.argv[1]))
