# SPDX-License-Identifier: MIT
"""The state of a run as plain values and tensors, and back. There are no generator states: see `randomness`."""

from __future__ import annotations

import dataclasses
from typing import Any

from training.errors import CheckpointError
from training.run import Position, Run


def capture(run: Run) -> dict[str, Any]:
    """Everything a checkpoint needs for the run to continue as if it had never stopped."""
    return {
        **describe(run),
        "model": run.model.state_dict(),
        "model_ema": run.ema.module.state_dict() if run.ema else None,
        "optimizer": run.optimizer.state_dict(),
        "scaler": run.scaler.state_dict(),
        "task_state": run.task.state_dict(),
        "position": dataclasses.asdict(run.position),
        "order": _order(run),
    }


def describe(run: Run) -> dict[str, Any]:
    """The part of a checkpoint that says what its weights are."""
    return {
        "task": run.task.name,
        "options": dataclasses.asdict(run.options),
        "history": run.history,
        **run.task.describe_weights(),
    }


def restore(run: Run, content: dict[str, Any]) -> list[str]:
    """Bring a freshly built run to the state `content`.

    Returns what the user should know: that another number of processes means another global batch, and that the
    position inside an epoch was given up because the order of the images is another one now (a file was removed).

    Raises:
        CheckpointError: the run is for other data or has another model.
    """
    run.task.check_weights(content)
    try:
        run.model.load_state_dict(content["model"])
        if run.ema is not None:
            run.ema.module.load_state_dict(content["model_ema"])
        run.optimizer.load_state_dict(content["optimizer"])
        run.scaler.load_state_dict(content["scaler"])
        run.task.load_state_dict(content.get("task_state", {}))
    except (RuntimeError, ValueError, KeyError) as error:
        raise CheckpointError(f"--resume: the checkpoint does not fit {run.options.model}: {error}") from error
    run.history = list(content["history"])
    run.position = Position(**content["position"])
    remarks, before, now = [], content["order"], _order(run)
    if before["ranks"] != now["ranks"]:
        remarks.append(f"{now['ranks']} processes, {before['ranks']} before: the global batch and its rate change too")
    if run.position.step > 0 and before != now:
        run.position = Position(epoch=run.position.epoch)
        remarks.append(f"the order of the images has changed: epoch {run.position.epoch + 1} starts over")
    return remarks


def _order(run: Run) -> dict[str, int]:
    """Facts that decide the order of the images in an epoch, beside options that cannot change."""
    return {"images": run.task.training_images, "ranks": run.world.size, "steps": run.task.batches.per_epoch}
