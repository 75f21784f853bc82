# SPDX-License-Identifier: MIT
"""Puts a run together from its options: data, student and teacher."""

from __future__ import annotations

import torch
from torch import nn

from labelled_images.decoded_cache import keep_decoded
from labelled_images.sources import Source, open_training_sources
from networks.build import build_model, checkpoint_gradients, make_image_format
from tasks.dino.branches import Branch, Distillation
from tasks.dino.data import hold_out
from tasks.dino.head import DINOHead
from tasks.dino.options import DinoOptions
from tasks.dino.task import Dino
from tasks.dino.views import GLOBAL_VIEWS
from training.checkpoint import load_weights
from training.compute import ImageFormat, make_compute
from training.distributed import World
from training.errors import OptionError
from training.interrupt import StopGuard
from training.randomness import seed_everything
from training.run import Run, make_run

CROP_PCT = 224 / 256  # of the images that features are judged on, as official


def open_sources(options: DinoOptions) -> tuple[Source, Source]:
    """The images to learn from, which are also the bank of neighbours, and those to judge the features on.

    Raises:
        DataError: as `open_training_sources`, or --holdout takes a class whole.
    """
    train, val = open_training_sources(options.data_path, options.val_path)
    return hold_out(train, options.holdout) if options.holdout is not None else (train, val)


def build_backbone(options: DinoOptions, drop_path: float = 0.0) -> nn.Module:
    """The network without a classifier, for images of both sizes, with weights drawn now.

    Raises:
        OptionError: it refuses an argument, or images of one of the sizes.
    """
    given = dict(options.model_kwargs or {})
    rates = {"drop_path_rate": drop_path}
    size = options.global_crops_size
    if options.local_crops_number and options.local_crops_size != size and "dynamic_img_size" not in given:
        try:
            return build_model(options.model, 0, size, {**given, "dynamic_img_size": True}, **rates)
        except OptionError:  # it takes images of any size, or has no such argument; the next lines tell
            pass
    return build_model(options.model, 0, size, given, **rates)


@torch.no_grad()
def count_features(backbone: nn.Module, options: DinoOptions) -> int:
    """The channels of the features.

    Raises:
        OptionError: the network cannot take images of a view's size, or gives no vector of features.
    """
    sizes = {"global_crops_size": options.global_crops_size}
    if options.local_crops_number:
        sizes["local_crops_size"] = options.local_crops_size
    backbone.eval()
    for name, size in sizes.items():
        flag = "--" + name.replace("_", "-")
        try:
            features = backbone(torch.zeros(2, 3, size, size))
        except (RuntimeError, ValueError, AssertionError) as error:
            alone = "; --local-crops 0 trains with the global views alone" if name == "local_crops_size" else ""
            raise OptionError(f"{flag} {size}: {options.model} cannot take such images: {error}{alone}") from error
        if features.ndim != 2:
            raise OptionError(
                f"--model {options.model} gives {tuple(features.shape)} for 2 images, expected a vector each; it may "
                "need --model-kwargs global_pool=avg"
            )
    return features.shape[1]


def build_branch(options: DinoOptions, drop_path: float = 0.0) -> Branch:
    """A backbone with its head, with weights drawn now.

    Raises:
        OptionError: as `build_backbone` and `count_features`.
    """
    backbone = build_backbone(options, drop_path)
    head = DINOHead(
        count_features(backbone, options), options.out_dim, options.head_hidden_dim, options.head_bottleneck_dim,
        options.use_bn_in_head, options.norm_last_layer,
    )  # fmt: skip
    return Branch(backbone, head).train()


def image_format_of(backbone: nn.Module, options: DinoOptions) -> ImageFormat:
    """What the backbone expects of an image that its features are judged on."""
    return make_image_format(backbone, options.global_crops_size, CROP_PCT)


def build_run(
    options: DinoOptions, world: World, guard: StopGuard, sources: tuple[Source, Source], output_dir: str
) -> Run:
    """Assemble a run at its beginning.

    Raises:
        OptionError: the network or the optimizer refuses an option.
        DataError: there are fewer images than a batch or --knn-k needs.
        CheckpointError: --initial-checkpoint does not fit the network.
    """
    train, val = map(keep_decoded, sources)
    compute = make_compute(world.device, options.amp_dtype, options.channels_last)
    seed_everything(options.seed)
    student = build_branch(options, options.drop_path)
    if options.initial_checkpoint:
        load_weights(student.backbone, options.initial_checkpoint, branch=options.checkpoint_key)
    teacher = build_branch(options)  # without drop-path: what it says is no matter of chance
    if options.grad_checkpointing:
        checkpoint_gradients(student.backbone)
    image_format = image_format_of(student.backbone, options)
    model = Distillation(student, teacher, GLOBAL_VIEWS, options.out_dim).train()
    model.to(device=compute.device, memory_format=compute.memory_format)
    task = Dino(options, model, train, val, image_format, compute, world, lambda: untrained_backbone(options))
    return make_run(task, options, world, compute, guard, output_dir)


def untrained_backbone(options: DinoOptions) -> nn.Module:
    """The network as a run with these options begins, without --initial-checkpoint."""
    state = torch.get_rng_state()
    seed_everything(options.seed)
    backbone = build_backbone(options, options.drop_path)
    torch.set_rng_state(state)
    return backbone.eval()
