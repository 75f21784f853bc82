# SPDX-License-Identifier: MIT
"""Features of all images of a source, each once: every rank has its own, and sees the others' in chunks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from labelled_images.evaluation_transform import evaluation_transform
from labelled_images.loader import image_loader
from labelled_images.sources import Source
from training.batches import EvaluationBatches
from training.compute import Compute, ImageFormat
from training.distributed import World
from training.evaluation import Evaluation, visit
from training.interrupt import StopGuard
from training.progress import Progress

CHUNK = 16384  # rows of the bank that all ranks look at together


@dataclasses.dataclass(frozen=True)
class Images(Evaluation):
    """Images of a source as a network is judged on them; `numbers` are those of this rank in the source."""

    source: Source
    compute: Compute
    image_format: ImageFormat

    @property
    def numbers(self) -> list[int]:
        return [index for batch in self.batches.batches for index, _ in batch]

    def all_numbers(self) -> list[int]:
        """Those of all ranks, which are fewer than the source has with --limit-batches."""
        count = self.batches.images
        return [i * len(self.source.labels) // count for i in range(count)]


def make_images(
    source: Source,
    image_format: ImageFormat,
    compute: Compute,
    world: World,
    batch_size: int,
    num_workers: int | None,
    limit_batches: int | None = None,
) -> Images:
    """The images of `source`, resized and cropped in the middle, shared among the ranks."""
    batches = EvaluationBatches(len(source.labels), batch_size, world, limit_batches)
    loader = image_loader(source, evaluation_transform(image_format), batches, num_workers, world)
    return Images(world, batches, loader, source, compute, image_format)


@dataclasses.dataclass(frozen=True)
class Features:
    """What a network makes of the images of this rank: rows (N, C), their labels and numbers in the source (N,)."""

    rows: Tensor
    labels: Tensor
    numbers: Tensor
    world: World

    def chunks(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Rows, labels and numbers of all ranks, `CHUNK` at a time and the same ones on every rank together."""
        counts = self.world.gather(len(self.rows))
        for rank, count in enumerate(counts):
            for start in range(0, count, CHUNK):
                size = min(CHUNK, count - start)
                parts = [
                    tensor[start : start + size].contiguous()
                    if rank == self.world.rank
                    else tensor.new_empty(size, *tensor.shape[1:])
                    for tensor in (self.rows, self.labels, self.numbers)
                ]
                if self.world.size > 1:
                    for part in parts:
                        dist.broadcast(part, src=rank)
                yield tuple(parts)


@torch.no_grad()
def extract(
    network: Callable[[Tensor], Tensor],
    images: Images,
    guard: StopGuard | None = None,
    progress: Progress | None = None,
    normalize: bool = True,
) -> Features:
    """The features of `images`, of norm 1 unless told otherwise; `network` gives (B, C) for normalized images.

    Raises:
        Interrupted, DataError: as `training.evaluation.visit`.
    """
    rows, labels = [], []

    def add(batch: tuple[Tensor, Tensor]) -> None:
        pixels, batch_labels = batch
        with images.compute.autocast():
            found = network(images.compute.normalize(pixels, images.image_format))
        rows.append(F.normalize(found.float(), dim=1) if normalize else found.float())
        labels.append(batch_labels)

    visit(add, images, guard, progress)
    device = images.world.device
    width = torch.tensor([rows[0].shape[1] if rows else 0])
    width = images.world.agree(int(width))  # a rank without images takes part with none
    return Features(
        torch.cat(rows) if rows else torch.empty(0, width, device=device),
        (torch.cat(labels) if labels else torch.empty(0, dtype=torch.long)).to(device),
        torch.tensor(images.numbers, dtype=torch.long, device=device),
        images.world,
    )


def mean_of(features: Features) -> Tensor:
    """The mean (C,) of all ranks' rows."""
    rows = features.rows.double()
    sums = features.world.sum(torch.cat([rows.sum(0), rows.new_tensor([len(rows)])]))
    return (sums[:-1] / sums[-1]).to(rows.device)


def less(features: Features, mean: Tensor) -> Features:
    """The rows without `mean` (C,), of norm 1."""
    return dataclasses.replace(features, rows=F.normalize(features.rows - mean.float(), dim=1))
