# SPDX-License-Identifier: MIT
"""What the features of a trained network have to beat: raw pixels, and the network before any training."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from timm.utils import distribute_bn
from torch import Tensor, nn

from tasks.dino.features import Features, Images, extract, less, mean_of
from training.evaluation import visit
from training.interrupt import StopGuard
from training.progress import Progress

Accuracies = dict[str, float]
Judge = Callable[[Features, Features], Accuracies]
"""(queries, bank) → accuracies by name."""

PIXELS_SIDE = 32  # larger images are averaged down to it: a bank of whole photographs fits no memory
IMAGES_FOR_NORMS = 2048


def measure_controls(
    untrained: Callable[[], nn.Module],
    queries: Images,
    bank: Images,
    judge: Judge,
    guard: StopGuard | None = None,
    progress: Progress | None = None,
) -> dict[str, Accuracies]:
    """Accuracies by a control's name: "raw pixels", "untrained" and, where the network has batch norms, the same with
    statistics of the training images, "untrained, norms recalibrated".

    Raises:
        Interrupted, DataError: as `extract`.
    """

    def features(network: Callable[[Tensor], Tensor], normalize: bool = True) -> list[Features]:
        return [extract(network, images, guard, progress, normalize) for images in (queries, bank)]

    pixels = features(_small_pixels, normalize=False)
    mean = mean_of(pixels[1])  # cosines of pixels are all near 1 with it
    found = {"raw pixels": judge(*(less(of_images, mean) for of_images in pixels))}
    network = untrained().to(queries.compute.device, memory_format=queries.compute.memory_format)
    found["untrained"] = judge(*features(network.eval()))
    if recalibrate_norms(network, bank, guard, progress):
        found["untrained, norms recalibrated"] = judge(*features(network.eval()))
    return found


def _small_pixels(images: Tensor) -> Tensor:
    if max(images.shape[-2:]) > PIXELS_SIDE:
        images = F.adaptive_avg_pool2d(images, PIXELS_SIDE)
    return images.flatten(1)


@torch.no_grad()
def recalibrate_norms(
    network: nn.Module, images: Images, guard: StopGuard | None = None, progress: Progress | None = None
) -> bool:
    """Give the batch norms the statistics of up to `IMAGES_FOR_NORMS` images; False if there are no batch norms."""
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return False
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
    network.train()
    seen = 0

    def learn(batch: tuple[Tensor, Tensor]) -> None:
        nonlocal seen
        pixels, _ = batch
        if seen * images.world.size < IMAGES_FOR_NORMS and len(pixels) > 1:
            with images.compute.autocast():
                network(images.compute.normalize(pixels, images.image_format))
            seen += len(pixels)

    visit(learn, images, guard, progress)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    if images.world.size > 1:
        distribute_bn(network, images.world.size, reduce=True)
    network.eval()
    return True
