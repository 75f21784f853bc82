# SPDX-License-Identifier: MIT
"""Evaluating a checkpoint: what `validate.py` and `train.py --eval` share."""

from __future__ import annotations

import dataclasses

from timm.utils import reparameterize_model
from torch import nn

from labelled_images.class_order import CLASS_ORDERS, describe_orders
from labelled_images.options import DataOptions
from labelled_images.sources import open_validation_source
from networks.options import SavedNetworkOptions
from networks.saved_network import find_network
from tasks.classification.metrics import Metrics, evaluate, make_evaluation
from training.checkpoint import load_weights
from training.compute import make_compute
from training.distributed import join_world
from training.errors import DataError, OptionError
from training.option_checks import check_compute
from training.options import option
from training.progress import Progress
from training.shared_options import ComputeOptions, ImageOptions, LoaderOptions


@dataclasses.dataclass(frozen=True, kw_only=True)
class ValidationOptions(ComputeOptions, LoaderOptions, ImageOptions, DataOptions, SavedNetworkOptions):
    """What is evaluated and how. What is left out comes from the checkpoint, if it is one of `train.py`."""

    checkpoint: str | None = option(None, "the weights", "model")
    class_order: str | None = option(
        None, "number class folders as text (1, 10, 2), as torchvision, or in natural order (1, 2, 10), as timm "
        "(default: the checkpoint's)", "data", choices=CLASS_ORDERS,
    )  # fmt: skip
    fuse: bool = option(False, "fold norms and parallel branches into other layers beforehand", "compute")


@dataclasses.dataclass(frozen=True)
class Judgement:
    """What was evaluated, and the result."""

    model: str
    checkpoint: str
    data: str
    input_size: int
    metrics: Metrics
    remarks: list[str]  # what of the data was passed over
    is_main: bool

    def as_dict(self) -> dict:
        """Plain values for JSON."""
        metrics = self.metrics
        return {
            "model": self.model, "checkpoint": self.checkpoint, "data": self.data, "input_size": self.input_size,
            "top1": metrics.top1, "top5": metrics.top5, "loss": metrics.loss, "images": metrics.images,
            "images_per_second": metrics.images / metrics.seconds, "remarks": self.remarks,
        }  # fmt: skip

    def __str__(self) -> str:
        metrics = self.metrics
        size, rate = self.input_size, metrics.images / metrics.seconds
        return "\n".join([
            *self.remarks,
            f"{self.model} at {size}×{size} on {metrics.images:,} images of {self.data}",
            f"top-1 {metrics.top1:.2f} %   top-5 {metrics.top5:.2f} %   loss {metrics.loss:.4f}   {rate:.0f} images/s",
        ])  # fmt: skip


def settings_from(explicit: dict) -> ValidationOptions:
    """The part of `train.py`'s explicit options that matters with --eval."""
    known = {field.name for field in dataclasses.fields(ValidationOptions)}
    checkpoint = explicit.get("resume") or explicit.get("initial_checkpoint")
    return ValidationOptions(
        checkpoint=checkpoint, **{name: value for name, value in explicit.items() if name in known}
    )


def fuse(model: nn.Module) -> nn.Module:
    """`model` for evaluation alone: by its own `fuse`, or as timm does for any of its models."""
    return model.eval().fuse() if hasattr(model, "fuse") else reparameterize_model(model.eval(), inplace=True)


def judge_checkpoint(options: ValidationOptions, quiet: bool = False) -> Judgement:
    """Evaluate a checkpoint, and print the result unless `quiet`.

    Raises:
        OptionError: the model, the data or the order of its classes is not known, neither from an option nor from the
            checkpoint.
        CheckpointError: the weights cannot be read or belong to another model.
        DataError: the images are missing or unreadable, or their classes are not those of the model.
    """
    if options.checkpoint is None:
        raise OptionError("--checkpoint is needed: the weights to evaluate")
    check_compute(options.device, options.amp_dtype)
    saved = find_network(options.checkpoint, options.model, options.model_kwargs)
    if options.data_path is None and options.val_path is None and not saved.options:
        raise OptionError(f"--data-path is needed: {options.checkpoint} does not say what it was trained on")
    paths = (options.data_path, options.val_path)
    if paths == (None, None):
        paths = (saved.options["data_path"], saved.options["val_path"])
    source = open_validation_source(*paths, options.class_order or saved.options.get("class_order", "text"))
    if saved.classes is None and options.class_order is None and (orders := describe_orders(source.classes)):
        raise OptionError(
            f"--class-order is needed: {options.checkpoint} does not name its classes, and those of {source.name} are "
            f"{orders}; give the order that the weights were trained with"
        )

    world = join_world(options.device)
    compute = make_compute(world.device, options.amp_dtype, options.channels_last)
    model = saved.build(options.num_classes, options.input_size)
    if saved.classes is not None and saved.classes != source.classes:
        what = "the classes in another order" if sorted(saved.classes) == sorted(source.classes) else "other classes"
        raise DataError(f"{source.name} has {what} than {options.checkpoint} was trained on")
    if model.num_classes != len(source.classes):
        raise DataError(f"{saved.name} has {model.num_classes} classes, {source.name} has {len(source.classes)}")
    load_weights(model, options.checkpoint, use_ema=options.use_ema)
    model.to(device=compute.device, memory_format=compute.memory_format)
    if options.fuse:
        model = fuse(model)

    image_format = saved.image_format(model, options.input_size, options.crop_pct)
    evaluation = make_evaluation(
        source, image_format, compute, world, options.batch_size, options.num_workers, options.limit_batches
    )
    metrics = evaluate(model, evaluation, progress=Progress(world.is_main and not quiet))
    judgement = Judgement(
        saved.name, options.checkpoint, source.name, image_format.size, metrics, source.remarks, world.is_main
    )
    if world.is_main and not quiet:
        print(judgement)
    return judgement
