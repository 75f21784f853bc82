# SPDX-License-Identifier: MIT
"""From sources to batches: transforms, loaders, augmentations.

Workers deliver uint8 images (four times less to move than float32); `Compute.normalize` and `Augmenter` finish the work
on the device.
"""

from __future__ import annotations

import torch
from timm.data import Mixup, create_transform
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import str_to_interp_mode
from torchvision import transforms

from labelled_images.evaluation_transform import SMALL_INPUT
from labelled_images.sources import Source
from tasks.classification.option_checks import mixes, uses_policy
from tasks.classification.options import Options
from training.batches import TrainingBatches
from training.compute import ImageFormat
from training.distributed import World


def training_transform(options: Options, image_format: ImageFormat):
    """PIL image to uint8 (3, size, size): random crop, flip, augmentation policy or color jitter."""
    size = image_format.size
    crop_and_flip, policy, to_tensor = create_transform(
        size, is_training=True, normalize=False, separate=True, hflip=options.hflip,
        color_jitter=options.color_jitter or None, auto_augment=options.aa if uses_policy(options) else None,
        interpolation=options.train_interpolation, mean=image_format.mean, std=image_format.std,
    )  # fmt: skip
    if size <= SMALL_INPUT:
        mode = "bicubic" if options.train_interpolation == "random" else options.train_interpolation
        crop_and_flip = transforms.Compose([
            transforms.Resize((size, size), interpolation=str_to_interp_mode(mode)),
            transforms.RandomCrop(size, padding=size // 8),
            transforms.RandomHorizontalFlip(options.hflip),
        ])  # fmt: skip
    return transforms.Compose([crop_and_flip, policy, to_tensor])


def training_batches(source: Source, options: Options, world: World) -> TrainingBatches:
    """The order of the training images of `source`.

    Raises:
        DataError: there are fewer than a batch needs.
    """
    return TrainingBatches(len(source.labels), source.name, options, world, options.repeated_aug)


class Augmenter:
    """The augmentations of whole batches, on the device: random erasing, then mixup and cutmix."""

    def __init__(self, options: Options, num_classes: int, device: torch.device):
        self.erase = self.mix = None
        if options.reprob > 0:
            self.erase = RandomErasing(options.reprob, mode=options.remode, max_count=options.recount, device=device)
        if mixes(options):
            self.mix = Mixup(
                options.mixup, options.cutmix, options.cutmix_minmax, options.mixup_prob, options.mixup_switch_prob,
                options.mixup_mode, label_smoothing=options.smoothing, num_classes=num_classes,
            )  # fmt: skip

    def __call__(self, images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Normalized images (B, 3, H, W) and labels (B,); where images are mixed, the labels become (B, classes)."""
        if self.erase is not None:
            images = self.erase(images)
        if self.mix is not None:
            images, labels = self.mix(images, labels)
        return images, labels
