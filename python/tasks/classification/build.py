# SPDX-License-Identifier: MIT
"""Puts a run together from its options: data and network."""

from __future__ import annotations

import container_kernels  # noqa: F401  registers our models with timm
from labelled_images.decoded_cache import keep_decoded
from labelled_images.sources import Source
from networks.build import build_model, checkpoint_gradients, make_image_format
from tasks.classification.options import Options
from tasks.classification.subset import repeat_images, select_images
from tasks.classification.task import Classification
from training.checkpoint import load_weights
from training.compute import make_compute
from training.distributed import World
from training.interrupt import StopGuard
from training.randomness import seed_everything
from training.run import Run, make_run


def build_run(options: Options, world: World, guard: StopGuard, sources: tuple[Source, Source], output_dir: str) -> Run:
    """Assemble a run at its beginning.

    Raises:
        OptionError: the model or the optimizer refuses an option.
        DataError: there are fewer images than a batch needs.
        CheckpointError: --initial-checkpoint does not fit the model.
    """
    train, val = map(keep_decoded, select_images(sources, options))
    train = repeat_images(train, options.epoch_repeats)
    compute = make_compute(world.device, options.amp_dtype, options.channels_last)
    seed_everything(options.seed)
    model = build_model(
        options.model, len(train.classes), options.input_size, options.model_kwargs,
        drop_rate=options.drop, drop_path_rate=options.drop_path,
    )  # fmt: skip
    if options.initial_checkpoint:
        load_weights(model, options.initial_checkpoint, new_classes=True, branch=options.checkpoint_key)
    if options.grad_checkpointing:
        checkpoint_gradients(model)
    model.to(device=compute.device, memory_format=compute.memory_format)
    image_format = make_image_format(model, options.input_size, options.crop_pct, options.mean, options.std)
    task = Classification(options, model, train, val, image_format, compute, world)
    return make_run(task, options, world, compute, guard, output_dir)
