# SPDX-License-Identifier: MIT
"""From sources to batches: transforms, the order of an epoch, loaders.

Workers deliver uint8 images (four times less to move than float32); `Compute.prepare` and `Augmenter` finish the work
on the device.
"""

from __future__ import annotations

import os
import signal

import torch
from PIL import Image
from timm.data import Mixup, create_transform
from timm.data.distributed_sampler import RepeatAugSampler
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import str_to_interp_mode
from torch.utils.data import DistributedSampler
from torchvision import transforms
from training.compute import ImageFormat
from training.distributed import World
from training.errors import DataError
from training.loading import Loader
from training.options import Options
from training.randomness import derive_seed, seed_host

from tasks.classification.option_checks import mixes, uses_policy
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


class TrainingBatches:
    """The keys of the training batches of one rank, a function of (seed, epoch); may start at any step."""

    def __init__(self, source: Source, options: Options, world: World):
        count = len(source.labels)
        self.batch_size, self.seed, self.rank = options.batch_size, options.seed, world.rank
        if options.repeated_aug:
            self.sampler = RepeatAugSampler(source.labels, num_replicas=world.size, rank=world.rank)
        else:
            self.sampler = DistributedSampler(source.labels, num_replicas=world.size, rank=world.rank, drop_last=True)
        self.steps = len(self.sampler) // options.batch_size
        if options.limit_batches is not None:
            self.steps = min(self.steps, options.limit_batches)
        if self.steps == 0:
            raise DataError(
                f"--batch-size {options.batch_size} is more than an epoch's {len(self.sampler)} images"
                f"{' per rank' if world.size > 1 else ''} ({count} in {source.name})"
            )
        self.go_to(epoch=0, step=0)

    def go_to(self, epoch: int, step: int) -> None:
        """The next iteration starts here."""
        self.epoch, self.first_step = epoch, step

    def __iter__(self):
        self.sampler.set_epoch(derive_seed(self.seed, self.epoch))
        indices = list(self.sampler)
        for step in range(self.first_step, self.steps):
            positions = range(step * self.batch_size, (step + 1) * self.batch_size)
            yield [(indices[i], (self.seed, self.epoch, self.rank, i)) for i in positions]

    def __len__(self) -> int:
        return self.steps - self.first_step


class EvaluationBatches:
    """Every image once over all ranks, none twice; ranks may differ by one batch.

    `images` is how many all ranks see together, `longest_rank` the most batches a rank has.
    """

    def __init__(self, source: Source, batch_size: int, world: World, limit_batches: int | None = None):
        count = self.images = len(source.labels)
        if limit_batches is not None:
            self.images = min(count, limit_batches * batch_size * world.size)
        # images are sorted by class: fewer of them are taken from the whole range
        indices = [i * count // self.images for i in range(world.rank, self.images, world.size)]
        starts = range(0, len(indices), batch_size)
        self.batches = [[(index, None) for index in indices[start : start + batch_size]] for start in starts]
        self.longest_rank = -(-self.images // (batch_size * world.size))

    def __iter__(self):
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


def make_loader(source: Source, transform, batches, num_workers: int | None, world: World) -> Loader:
    """A loader of (uint8 images, labels) or DataError; `num_workers` None takes this rank's share of the cores."""
    if num_workers is None:
        num_workers = min(8, len(os.sched_getaffinity(0)) // world.ranks_here)
    return Loader(
        ImageDataset(source, transform),
        batch_sampler=batches,
        collate_fn=collate,
        num_workers=num_workers,
        pin_memory=world.device.type == "cuda",
        persistent_workers=num_workers > 0,
        worker_init_fn=_leave_signals_to_main,
    )


def _leave_signals_to_main(worker_id: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


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
