"""The state of a run as plain values and tensors, and back. There are no generator states: see `randomness`."""

from __future__ import annotations

import dataclasses
from typing import Any

from training.build import Position, Run
from training.errors import CheckpointError
from training.sources import enumerate_names


def capture(run: Run) -> dict[str, Any]:
    """Everything a checkpoint needs for the run to continue as if it had never stopped."""
    return {
        **describe(run),
        "model": run.model.state_dict(),
        "model_ema": run.ema.module.state_dict() if run.ema else None,
        "optimizer": run.optimizer.state_dict(),
        "scaler": run.scaler.state_dict(),
        "position": dataclasses.asdict(run.position),
        "order": _order(run),
    }


def describe(run: Run) -> dict[str, Any]:
    """The part of a checkpoint that says what its weights are."""
    return {"options": dataclasses.asdict(run.options), "classes": run.classes, "history": run.history}


def restore(run: Run, content: dict[str, Any]) -> str | None:
    """Bring a freshly built run to the state `content`.

    Returns a remark for the user if the position inside an epoch had to be given up, because the order of the images
    is another one now (a file was removed, the number of processes changed).

    Raises:
        CheckpointError: the run has other classes or another model.
    """
    if content["classes"] != run.classes:
        raise CheckpointError(
            f"--resume: the checkpoint was trained on {enumerate_names(content['classes'], 3)}, "
            f"the data has {enumerate_names(run.classes, 3)}"
        )
    try:
        run.model.load_state_dict(content["model"])
        if run.ema is not None:
            run.ema.module.load_state_dict(content["model_ema"])
        run.optimizer.load_state_dict(content["optimizer"])
        run.scaler.load_state_dict(content["scaler"])
    except (RuntimeError, ValueError, KeyError) as error:
        raise CheckpointError(f"--resume: the checkpoint does not fit {run.options.model}: {error}") from error
    run.history = list(content["history"])
    run.position = Position(**content["position"])
    if run.position.step > 0 and content["order"] != _order(run):
        run.position = Position(epoch=run.position.epoch)
        return f"the order of the images changed since the checkpoint: epoch {run.position.epoch + 1} starts over"
    return None


def _order(run: Run) -> dict[str, int]:
    """What the order of the images in an epoch depends on, beside options that cannot change."""
    return {"images": run.training_images, "ranks": run.world.size, "steps": run.batches.steps}
