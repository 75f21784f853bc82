"""Batches are a function of (seed, epoch, step), whatever the workers; evaluation sees every image once."""

import numpy
import pytest
import torch
from PIL import Image
from trial_runs import CLASSES

from labelled_images.evaluation_transform import evaluation_transform
from labelled_images.loader import image_loader
from labelled_images.sources import FolderSource
from tasks.classification.data import Augmenter, training_batches, training_transform
from tasks.classification.options import Options
from training.batches import EvaluationBatches
from training.compute import ImageFormat, make_compute
from training.distributed import World
from training.errors import DataError

FORMAT = ImageFormat(size=32, crop_pct=0.875, interpolation="bicubic", mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))


def world(rank=0, size=1):
    return World(rank, size, torch.device("cpu"), control=None)


def batches_of(source, options, workers=0, epoch=0, step=0):
    order = training_batches(source, options, world())
    order.go_to(epoch, step)
    return list(image_loader(source, training_transform(options, FORMAT), order, workers, world()))


def same(first, second):
    return len(first) == len(second) and all(
        torch.equal(a, b) for x, y in zip(first, second, strict=True) for a, b in zip(x, y, strict=True)
    )


@pytest.fixture
def source(images):
    return FolderSource(str(images / "train"))


@pytest.mark.parametrize("repeated_aug", [True, False])
def test_batches_depend_on_seed_epoch_and_step_alone(source, repeated_aug):
    options = Options(batch_size=4, repeated_aug=repeated_aug, num_workers=0)
    whole = batches_of(source, options)
    assert len(whole) == 6 and whole[0][0].shape == (4, 3, 32, 32) and whole[0][0].dtype == torch.uint8
    assert same(batches_of(source, options, workers=2), whole)
    assert same(batches_of(source, options, workers=2, step=4), whole[4:])
    assert not same(batches_of(source, options, epoch=1), whole)
    assert not same(batches_of(source, Options(batch_size=4, repeated_aug=repeated_aug, seed=1)), whole)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_arrives_as_an_error_in_its_batch(own_images, workers):
    (own_images / "train" / "red" / "07.png").write_bytes(b"no image")
    source, keys = FolderSource(str(own_images / "train")), [[(0, None)], [(23, None)], [(1, None)]]
    loader = image_loader(source, evaluation_transform(FORMAT), keys, workers, world())
    batches = list(loader)
    assert [isinstance(batch, DataError) for batch in batches] == [False, True, False]
    assert "red/07.png" in str(batches[1])


def test_repeated_augmentation_shows_images_three_times_differently(source):
    order = training_batches(source, Options(batch_size=24), world())
    keys = next(iter(order))
    indices = [index for index, _ in keys]
    assert sorted(map(indices.count, set(indices))) == [3] * 8
    assert len({seed for _, seed in keys}) == 24


def test_ranks_share_an_epoch(source):
    options = Options(batch_size=4, repeated_aug=False)
    ranks = [[key for batch in training_batches(source, options, world(rank, 2)) for key in batch] for rank in (0, 1)]
    assert sorted(index for keys in ranks for index, _ in keys) == list(range(24))
    assert len({seed for keys in ranks for _, seed in keys}) == 24


@pytest.mark.parametrize(("size", "batch_size"), [(1, 7), (2, 5), (2, 7), (4, 4)])
def test_evaluation_sees_every_image_once(images, size, batch_size):
    source = FolderSource(str(images / "val"))
    ranks = [EvaluationBatches(len(source.labels), batch_size, world(rank, size)) for rank in range(size)]
    assert sorted(index for rank in ranks for batch in rank for index, _ in batch) == list(range(15))
    assert {rank.longest_rank for rank in ranks} == {max(map(len, ranks))}


def test_limit_batches_limits_both(images, source):
    assert training_batches(source, Options(batch_size=4, limit_batches=2), world()).per_epoch == 2
    limited = EvaluationBatches(len(source.labels), 4, world(), limit_batches=2)
    assert limited.images == 8
    assert {source.labels[index] for batch in limited for index, _ in batch} == {0, 1, 2}


def test_a_batch_larger_than_the_data_is_an_error(source):
    with pytest.raises(DataError, match=r"--batch-size 100 is more than an epoch's 24 images \(24 in .*train\)"):
        training_batches(source, Options(batch_size=100), world())


def test_small_inputs_are_resized_whole_and_large_ones_cropped(source):
    image = source.read(0).resize((500, 400))
    image.paste((255, 0, 0), (0, 0, 20, 400))  # a red left edge, which a centre crop cuts away
    small = evaluation_transform(FORMAT)(image)
    large = evaluation_transform(ImageFormat(**{**vars(FORMAT), "size": 224}))(image)
    assert small.shape == (3, 32, 32) and large.shape == (3, 224, 224)
    assert small[0, :, 0].min() > 200 and small[1, :, 0].max() < 100
    assert large[1, :, 0].float().mean() > 50


@pytest.mark.parametrize("size", [(1, 400), (401, 1), (2, 64), (300, 7)])
def test_long_images_are_cropped_before_they_are_resized(monkeypatch, size):
    pixels = numpy.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=numpy.uint8)
    large = ImageFormat(**{**vars(FORMAT), "size": 224})
    cropped = evaluation_transform(large)(Image.fromarray(pixels)).int()
    monkeypatch.setattr("labelled_images.evaluation_transform.MAX_PROPORTION", 1000)
    whole = evaluation_transform(large)(Image.fromarray(pixels)).int()
    assert cropped.shape == (3, 224, 224)
    # 300 · 256 / 7 is no whole number: half a pixel then, where the colors of two neighbors are 37 pixels apart
    assert (cropped - whole).abs().max() <= (8 if size == (300, 7) else 0)


def test_an_image_of_extreme_length_needs_no_memory(monkeypatch):
    sizes, resize = [], Image.Image.resize
    monkeypatch.setattr(
        Image.Image, "resize", lambda self, size, *more: sizes.append(size) or resize(self, size, *more)
    )
    large = evaluation_transform(ImageFormat(**{**vars(FORMAT), "size": 224}))
    assert large(Image.new("RGB", (1, 12000))).shape == (3, 224, 224)
    assert sizes == [(256, 4096)]


def test_images_get_the_models_mean_and_deviation():
    batch = torch.full((2, 3, 4, 4), 255, dtype=torch.uint8)
    normalized = make_compute(torch.device("cpu"), None, channels_last=True).normalize(batch, FORMAT)
    torch.testing.assert_close(normalized[0, :, 0, 0], torch.tensor([0.5 / 0.2, 0.6 / 0.3, 0.7 / 0.4]))
    assert normalized.is_contiguous(memory_format=torch.channels_last)


def test_augmenter_mixes_labels_and_erases():
    images, labels = torch.ones(8, 3, 32, 32), torch.arange(8) % 3
    mixed, targets = Augmenter(Options(mixup=1.0, cutmix=0.0, reprob=0.0), len(CLASSES), torch.device("cpu"))(
        images.clone(), labels
    )
    assert targets.shape == (8, 3)
    torch.testing.assert_close(targets.sum(1), torch.ones(8))
    erased, untouched = Augmenter(
        Options(mixup=0.0, cutmix=0.0, reprob=1.0, remode="const"), len(CLASSES), torch.device("cpu")
    )(images.clone(), labels)
    assert torch.equal(untouched, labels)
    assert ((erased == 0).flatten(1).any(1)).all() and torch.equal(mixed, images)
