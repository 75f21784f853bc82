# SPDX-License-Identifier: MIT
"""Features of a file of weights, judged: what `knn.py` does."""

from __future__ import annotations

import dataclasses
import functools

from torch import nn

from labelled_images.options import DataOptions
from labelled_images.sources import Source, open_training_sources
from networks.build import build_model
from networks.options import SavedBackboneOptions
from networks.saved_network import SavedNetwork, find_network
from tasks.dino.build import CROP_PCT
from tasks.dino.controls import Accuracies, measure_controls
from tasks.dino.data import hold_out
from tasks.dino.features import Features, extract, make_images
from tasks.dino.linear_probe import linear_accuracy
from tasks.dino.neighbours import NEIGHBOURS, TEMPERATURE, accuracies, check_bank, draw_few_of
from training.checkpoint import has_branches, load_weights
from training.compute import make_compute
from training.distributed import join_world
from training.errors import OptionError
from training.option_checks import check_compute, require_all
from training.options import option, positional
from training.progress import Progress
from training.randomness import seed_everything
from training.shared_options import ComputeOptions, ImageOptions, LoaderOptions


@dataclasses.dataclass(frozen=True, kw_only=True)
class JudgementOptions(ComputeOptions, LoaderOptions, ImageOptions, DataOptions, SavedBackboneOptions):
    """Whose features are judged, and on what. What is left out comes from the checkpoint, if it says so."""

    checkpoint: str = positional("weights of dino.py, the official DINO, train.py, or any of a timm model", "model")
    checkpoint_key: str | None = option(
        None, "which network of a self-supervised checkpoint (default: teacher)", "model",
        choices=("teacher", "student"),
    )  # fmt: skip
    knn_k: tuple[int, ...] = option(NEIGHBOURS, "numbers of neighbours", "evaluation", nargs="+", metavar="K")
    knn_temperature: float = option(TEMPERATURE, "temperature of the neighbours' votes", "evaluation")
    linear: bool = option(False, "fit a linear classifier as well", "evaluation")
    controls: bool = option(True, "measure the untrained network and raw pixels as well", "evaluation")


@dataclasses.dataclass(frozen=True)
class FeatureJudgement:
    """What was judged, and percent right by a name of the features (the checkpoint's, then the controls') and of the
    judge (`knn10`, …, `few`, `linear`)."""

    model: str
    checkpoint: str
    data: str
    input_size: int
    images: int  # judged
    bank: int  # images whose labels are known
    rows: dict[str, Accuracies]
    remarks: list[str]  # what of the data was passed over
    is_main: bool

    def as_dict(self) -> dict:
        """Plain values for JSON."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "is_main"}

    def __str__(self) -> str:
        names = list(next(iter(self.rows.values())))
        width = max(map(len, self.rows))
        heads = [name.replace("knn", "k = ").replace("few", "few labels") for name in names]
        table = [f"{'':{width}}" + "".join(f"{head:>12}" for head in heads)]
        for row, values in self.rows.items():
            table.append(f"{row:{width}}" + "".join(f"{values[name]:10.2f} %" for name in names))
        size = self.input_size
        return "\n".join([
            *self.remarks,
            f"{self.model} at {size}×{size}: {self.images:,} images of {self.data}, a bank of {self.bank:,}",
            *table,
        ])  # fmt: skip


def judge_features(options: JudgementOptions, quiet: bool = False) -> FeatureJudgement:
    """Judge the features of a checkpoint, and print the result unless `quiet`.

    Raises:
        OptionError: the model or the data is not known, neither from an option nor from the checkpoint.
        CheckpointError: the weights cannot be read or belong to another model.
        DataError: the images are missing or unreadable, or fewer than neighbours are asked for.
    """
    check_compute(options.device, options.amp_dtype)
    require_all(options, ("knn_k",), lambda ks: all(k >= 1 for k in ks), "each 1 or more")
    require_all(options, ("knn_temperature",), lambda value: value > 0, "more than 0")
    require_all(options, ("batch_size",), lambda value: value >= 1, "1 or more")
    require_all(options, ("limit_batches", "input_size"), lambda value: value is None or value >= 1, "1 or more")
    saved = find_network(options.checkpoint, options.model, options.model_kwargs)
    branches = has_branches(options.checkpoint)
    if options.checkpoint_key is not None and not branches:
        raise OptionError(f"--checkpoint-key has no effect: {options.checkpoint} has no teacher and student")
    key = options.checkpoint_key or "teacher"
    train, val = _open_sources(options, saved)

    world = join_world(options.device)
    compute = make_compute(world.device, options.amp_dtype, options.channels_last)
    network = _build(saved, options.input_size)
    load_weights(network, options.checkpoint, use_ema=options.use_ema, new_classes=True, branch=key)
    network.eval().to(device=compute.device, memory_format=compute.memory_format)
    crop_pct = options.crop_pct or saved.options.get("crop_pct") or CROP_PCT
    image_format = saved.image_format(network, options.input_size, crop_pct)
    loading = (compute, world, options.batch_size, options.num_workers, options.limit_batches)
    bank, queries = (make_images(source, image_format, *loading) for source in (train, val))
    check_bank(bank.batches.images, options.knn_k)

    few, classes = draw_few_of(bank), len(train.classes)
    neighbours = functools.partial(
        accuracies, ks=options.knn_k, few=few, classes=classes, temperature=options.knn_temperature
    )

    def judge(of_queries: Features, of_bank: Features) -> Accuracies:
        found = neighbours(of_queries, of_bank)
        return found | {"linear": linear_accuracy(of_queries, of_bank, classes)} if options.linear else found

    progress = Progress(world.is_main and not quiet)
    found = judge(*(extract(network, images, progress=progress) for images in (queries, bank)))
    rows = {key if branches else "checkpoint": found}
    if options.controls:
        seed_everything(saved.options.get("seed", 0))
        rows |= measure_controls(lambda: _build(saved, options.input_size), queries, bank, judge, progress=progress)
    judgement = FeatureJudgement(
        saved.name, options.checkpoint, val.name, image_format.size, queries.batches.images, bank.batches.images, rows,
        [*train.remarks, *val.remarks], world.is_main,
    )  # fmt: skip
    if world.is_main and not quiet:
        print(judgement)
    return judgement


def _open_sources(options: JudgementOptions, saved: SavedNetwork) -> tuple[Source, Source]:
    if options.data_path is None and options.val_path is not None:
        raise OptionError("--val-path needs --data-path, whose training images are the neighbours")
    if options.data_path is not None:
        return open_training_sources(options.data_path, options.val_path)
    if not saved.options:
        raise OptionError(f"--data-path is needed: {options.checkpoint} does not say what it was trained on")
    train, val = open_training_sources(saved.options["data_path"], saved.options["val_path"])
    holdout = saved.options.get("holdout")
    return hold_out(train, holdout) if holdout is not None else (train, val)


def _build(saved: SavedNetwork, input_size: int | None) -> nn.Module:
    return build_model(saved.name, 0, input_size or saved.input_size, saved.model_kwargs)
