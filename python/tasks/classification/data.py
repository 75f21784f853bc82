# SPDX-License-Identifier: MIT
"""From sources to batches: transforms, loaders, augmentations.

Workers deliver uint8 images (four times less to move than float32); `Compute.normalize` and `Augmenter` finish the work
on the device.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from PIL import Image
from timm.data import Mixup, create_transform
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import str_to_interp_mode
from torchvision import transforms
from training.batches import Key, TrainingBatches, make_loader
from training.compute import ImageFormat
from training.distributed import World
from training.errors import DataError
from training.loading import Loader
from training.randomness import derive_seed, seed_host

from tasks.classification.option_checks import mixes, uses_policy
from tasks.classification.options import Options
from tasks.classification.sources import Source

SMALL_INPUT = 64
"""Up to this size nothing is cut away: images are resized to it, and training shifts them by up to an eighth."""
MAX_PROPORTION = 16
"""How much longer than wide an image is resized. What is cut off lies outside the center crop of any longer image."""


def evaluation_transform(image_format: ImageFormat):
    """PIL image to uint8 (3, size, size): resize and center crop, or resize alone for small inputs."""
    size = image_format.size
    if size <= SMALL_INPUT:
        resize = transforms.Resize((size, size), interpolation=str_to_interp_mode(image_format.interpolation))
        return transforms.Compose([resize, transforms.PILToTensor()])
    resize_and_crop = create_transform(
        size, is_training=False, normalize=False, crop_pct=image_format.crop_pct,
        interpolation=image_format.interpolation,
    )  # fmt: skip
    return transforms.Compose([trim_long_side, resize_and_crop])


def trim_long_side(image: Image.Image) -> Image.Image:
    """The middle of an image that is more than `MAX_PROPORTION` times as long as wide, others as they are.

    Resizing comes before the center crop, and would make 2 GB of pixels of an image of 1×12000 to keep 224 rows.
    """
    short, long = sorted(image.size)
    # by whole pixels at either end, so that the middle stays where it is
    cut = (long - MAX_PROPORTION * short) // 2
    if cut <= 0:
        return image
    width, height = image.size
    box = (cut, 0, width - cut, height) if width > height else (0, cut, width, height - cut)
    return image.crop(box)


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


class ImageDataset(torch.utils.data.Dataset):
    """Transformed images of a source; a key is (index, counters), None where the transform is not random.

    The seed is mixed from the counters here, in a worker: for small images that takes as long as transforming them.

    An unreadable image is returned as its DataError, so that it reaches the training loop without the noise of a
    worker's traceback and the loop can save before it stops.
    """

    def __init__(self, source: Source, transform):
        self.source, self.transform = source, transform

    def __getitem__(self, key: tuple[int, tuple[int, ...] | None]):
        index, counters = key
        try:
            image = self.source.read(index)
        except DataError as error:
            return error
        if counters is not None:
            seed_host(derive_seed(*counters))
        return self.transform(image), self.source.labels[index]

    def __len__(self) -> int:
        return len(self.source.labels)


def collate(samples: list):
    """Stack (image, label) samples; a batch with an unreadable image is its DataError."""
    for sample in samples:
        if isinstance(sample, DataError):
            return sample
    images, labels = zip(*samples, strict=True)
    return torch.stack(images), torch.tensor(labels)


def training_batches(source: Source, options: Options, world: World) -> TrainingBatches:
    """The order of the training images of `source`.

    Raises:
        DataError: there are fewer than a batch needs.
    """
    return TrainingBatches(len(source.labels), source.name, options, world, options.repeated_aug)


def image_loader(
    source: Source, transform, batches: Iterable[list[Key]], num_workers: int | None, world: World
) -> Loader:
    """A loader of (uint8 images (B, 3, H, W), labels (B,)) or DataError, which follows `batches`."""
    return make_loader(ImageDataset(source, transform), batches, collate, num_workers, world)


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
