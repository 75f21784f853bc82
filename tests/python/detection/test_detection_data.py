"""Transforms and batches: boxes and masks follow the image, groups of wide and high images, any number of workers."""

import numpy
import pytest
import torch
from PIL import Image

from tasks.detection.annotations import Category, Objects
from tasks.detection.data import DetectionDataset, GroupedBatches, collate, detection_loader, grouped
from tasks.detection.scenes import Scenes, mask_boxes
from tasks.detection.transforms import (
    Crops,
    EvaluationTransform,
    Sizes,
    TrainingTransform,
    as_sample,
    resized,
    to_original,
)
from training.batches import TrainingBatches
from training.distributed import World
from training.errors import DataError
from training.shared_options import TrainingOptions

ONE = World(0, 1, torch.device("cpu"), None)


def marked(height, width):
    """A dark image with one light rectangle, which is its object."""
    pixels = numpy.zeros((height, width, 3), dtype=numpy.uint8)
    mask = numpy.zeros((1, height, width), dtype=bool)
    mask[0, height // 4 : height // 2, width // 8 : width // 2] = True
    pixels[mask[0]] = 255
    return Image.fromarray(pixels), objects_of(mask)


def objects_of(masks):
    area = masks.sum((1, 2)).astype(numpy.float32)
    count = len(masks)
    return Objects(mask_boxes(masks), numpy.arange(count), masks, area, numpy.zeros(count, dtype=bool))


@pytest.mark.parametrize(
    ("size", "short", "longest", "expected"),
    [((480, 640), 800, 1333, (800, 1067)), ((200, 1000), 800, 1333, (267, 1333)), ((1, 3000), 800, 1333, (1, 1333))],
)
def test_short_and_long_sides(size, short, longest, expected):
    assert resized(*size, short, longest) == expected
    assert resized(*size[::-1], short, longest) == expected[::-1]


@pytest.mark.parametrize("crops", [None, Crops((60, 80), 30, 60)], ids=["", "crops"])
def test_boxes_and_masks_follow_the_image(crops):
    """After any flip, crop and size, the light pixels are where box and mask say."""
    transform = TrainingTransform(Sizes((40, 64, 96), 120), 0.5, crops)
    sizes, counts = set(), set()
    for seed in range(40):
        torch.manual_seed(seed)
        image, target = transform(*marked(48, 80))
        assert image.dtype == torch.uint8 and type(image) is torch.Tensor
        sizes.add(tuple(image.shape[1:]))
        counts.add(len(target["labels"]))
        assert len({len(value) for value in target.values()}) == 1
        if not len(target["labels"]):
            assert (image > 200).float().mean() < 0.02
            continue
        light = image[0] > 127
        assert (light != target["masks"][0]).float().mean() < 0.06
        rows, columns = light.any(1).nonzero(), light.any(0).nonzero()
        seen = torch.tensor([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]).flatten()
        assert (seen - target["boxes"][0]).abs().max() < 3
        assert (target["boxes"] >= 0).all() and (target["boxes"][:, 2] <= image.shape[2]).all()
    assert len(sizes) >= 3 and (crops is None) == (counts == {1})


def test_evaluation_has_one_size_and_goes_back():
    image, target = EvaluationTransform(Sizes((40, 64), 120))(*marked(48, 80))
    assert image.shape == (3, 64, 107)
    detection = {"boxes": target["boxes"], "masks": target["masks"], "labels": target["labels"]}
    original = to_original(detection, (64, 107), (48, 80))
    torch.testing.assert_close(original["boxes"], torch.from_numpy(marked(48, 80)[1].boxes), rtol=0, atol=1e-4)
    assert original["masks"].shape == (1, 48, 80)
    assert (original["masks"][0].numpy() != marked(48, 80)[1].masks[0]).mean() < 0.02
    beyond = to_original({"boxes": torch.tensor([[-5.0, -5, 200, 200]])}, (64, 107), (48, 80))
    assert beyond["boxes"].tolist() == [[0, 0, 80, 48]]


def test_crowds_are_not_trained_on():
    _, objects = marked(20, 30)
    crowd = Objects(objects.boxes, objects.labels, objects.masks, objects.area, numpy.array([True]))
    _, target = as_sample(Image.new("RGB", (30, 20)), crowd)
    assert target["boxes"].shape == (0, 4) and target["labels"].shape == (0,) and target["masks"].shape == (0, 20, 30)


class Shapes:
    """Images that are wide or high, and one that cannot be read."""

    name, categories, has_masks, remarks = "shapes", [Category(0, "x")], False, []

    def __init__(self, sizes, broken=()):
        self.sizes, self.broken = sizes, broken

    def __len__(self):
        return len(self.sizes)

    def size(self, index):
        return self.sizes[index]

    def read(self, index):
        if index in self.broken:
            raise DataError(f"cannot read image {index}")
        return marked(*self.sizes[index])


def test_groups():
    random = numpy.random.default_rng(0)
    is_wide = (random.random(101) < 0.3).tolist()
    order = random.permutation(101).tolist()
    batches = grouped(order, is_wide, 4)
    places = [place for batch in batches for place, _ in batch]
    assert len(batches) == 25 and all(len(batch) == 4 for batch in batches) and len(set(places)) == 100
    assert all(order[place] == index for batch in batches for place, index in batch)
    mixed = [batch for batch in batches if len({is_wide[index] for _, index in batch}) > 1]
    assert mixed in ([], batches[-1:])
    assert grouped([0, 1], [True, False], 3) == []


def test_grouped_batches_start_anywhere():
    source = Shapes([(20, 30) if i % 3 else (30, 20) for i in range(20)])
    options = TrainingOptions(batch_size=3)
    batches = GroupedBatches(source, options, ONE)
    assert batches.per_epoch == TrainingBatches(20, "shapes", options, ONE).per_epoch == len(list(batches)) == 6
    whole = list(batches)
    batches.go_to(0, 4)
    assert list(batches) == whole[4:] and len(batches) == 2
    batches.go_to(1, 0)
    assert list(batches) != whole
    ranks = [GroupedBatches(source, options, World(rank, 2, torch.device("cpu"), None)) for rank in (0, 1)]
    seen = [index for rank in ranks for batch in rank for index, _ in batch]
    assert len(seen) == len(set(seen)) == 18


@pytest.mark.parametrize("workers", [0, 2])
def test_samples_are_a_function_of_their_keys(workers):
    source = Scenes(6, train=True)
    keys = [[(0, (0, 0, 0, 0)), (3, (0, 0, 0, 1))], [(5, (0, 0, 0, 2)), (5, (0, 1, 0, 2))]]
    transform = TrainingTransform(Sizes((96, 112, 128, 144), 400), 0.5, Crops((100, 120), 60, 110))
    expected = [collate([DetectionDataset(source, transform)[key] for key in batch]) for batch in keys]
    loaded = list(detection_loader(source, transform, keys, workers, ONE))
    for batch, other in zip(loaded, expected, strict=True):
        assert batch.indices == other.indices
        assert all(map(torch.equal, batch.images, other.images))
        for target, same in zip(batch.targets, other.targets, strict=True):
            assert all(torch.equal(target[name], same[name]) for name in ("boxes", "labels", "masks"))


def test_an_unreadable_image_is_the_batchs_error():
    source = Shapes([(20, 30)] * 3, broken=(1,))
    transform = EvaluationTransform(Sizes((20,), 100))
    (batch,) = detection_loader(source, transform, [[(0, None), (1, None)]], 0, ONE)
    assert isinstance(batch, DataError) and str(batch) == "cannot read image 1"
