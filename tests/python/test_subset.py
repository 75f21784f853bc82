"""A part of the images: by class, nested, seeded; and small sets stay decoded."""

import collections

import numpy
import pytest
from test_data import world

from labelled_images.decoded_cache import MemorySource, keep_decoded
from labelled_images.sources import DigitsSource, FolderSource
from tasks.classification.build import build_run
from tasks.classification.data import training_batches
from tasks.classification.options import Options
from tasks.classification.subset import SubsetSource, repeat_images, select_images, take_fraction
from training.errors import DataError
from training.interrupt import StopGuard


@pytest.fixture(scope="module")
def digits():
    return DigitsSource(train=True)


@pytest.mark.parametrize("fraction", [0.001, 0.1, 0.5])
def test_a_fraction_holds_its_part_of_every_class(digits, fraction):
    part = collections.Counter(take_fraction(digits, fraction, seed=3).labels)
    for label, count in collections.Counter(digits.labels).items():
        assert part[label] == max(1, round(fraction * count))


def test_fractions_are_nested_and_seeded(digits):
    drawn = ((0.1, 3), (0.5, 3), (0.1, 3), (0.1, 4))
    tenth, half, again, other = (set(take_fraction(digits, fraction, seed).indices) for fraction, seed in drawn)
    assert tenth < half and tenth == again
    assert len(tenth & other) < 0.3 * len(tenth)  # a tenth of it by chance
    assert take_fraction(digits, 1.0, seed=3) is digits


def test_a_part_reads_the_images_of_its_labels(digits):
    part = take_fraction(digits, 0.1, seed=0)
    for i, index in enumerate(part.indices):
        assert part.read(i).tobytes() == digits.read(index).tobytes() and part.labels[i] == digits.labels[index]


def test_options_select_the_images(images):
    sources = FolderSource(str(images / "train")), FolderSource(str(images / "val"))
    options = Options(train_fraction=0.5, epoch_repeats=2, val_fraction=0.4, batch_size=4, repeated_aug=False)
    train, val = select_images(sources, options)
    train = repeat_images(train, options.epoch_repeats)
    assert collections.Counter(train.labels) == {0: 8, 1: 8, 2: 8} and val.labels == [0, 0, 1, 1, 2, 2]
    distinct = {train.read(i).tobytes() for i in range(24)}
    assert len(distinct) == 12
    order = training_batches(train, options, world())
    seen = collections.Counter(train.read(index).tobytes() for batch in order for index, _ in batch)
    assert set(seen.values()) == {2}  # an epoch is two passes
    others = select_images(sources, Options(train_fraction=0.5, val_fraction=0.4, seed=1))
    assert others[0].indices != take_fraction(sources[0], 0.5, seed=0).indices
    assert others[1].indices == val.indices  # judged on the same images whatever the seed


def test_small_sets_are_decoded_once(images, monkeypatch):
    source, reads = FolderSource(str(images / "train")), []
    read = FolderSource.read
    monkeypatch.setattr(FolderSource, "read", lambda self, index: reads.append(index) or read(self, index))
    assert keep_decoded(source, limit=24 * 20 * 24 * 3 - 1) is source
    kept = keep_decoded(source, limit=24 * 20 * 24 * 3)
    assert kept.in_memory and keep_decoded(kept) is kept
    reads.clear()
    for i in range(24):
        assert numpy.array_equal(kept.read(i), kept.read(i))
    assert reads == []
    assert [kept.read(i).tobytes() for i in range(24)] == [read(source, i).tobytes() for i in range(24)]
    assert (kept.classes, kept.labels, kept.name) == (source.classes, source.labels, source.name)


@pytest.mark.parametrize("large", [2, 23])
def test_what_turns_out_too_large_while_decoding_is_left_alone(own_images, large):
    source = FolderSource(str(own_images / "train"))
    limit = 24 * 20 * 24 * 3 + 1000
    assert keep_decoded(source, limit).in_memory
    source.read(0).resize((60, 60)).save(source.files[large])  # not among the samples
    assert keep_decoded(source, limit) is source


def test_a_few_images_of_different_size_are_judged_by_each(own_images):
    source = FolderSource(str(own_images / "train"))
    few = take_fraction(source, 0.01, seed=0)
    few.read(0).resize((2, 2)).save(source.files[few.indices[0]])
    reads = []
    few.read = lambda index: reads.append(index) or SubsetSource.read(few, index)
    assert keep_decoded(few, limit=2 * 20 * 24 * 3) is few and reads == [0, 1, 2]


def test_passes_over_the_images_decode_them_once(images, monkeypatch):
    reads, read = [], FolderSource.read
    monkeypatch.setattr(FolderSource, "read", lambda self, index: reads.append(index) or read(self, index))
    options = Options(
        model="test_resnet", input_size=32, train_fraction=0.5, epoch_repeats=5, batch_size=4, num_workers=0,
        model_ema=False, epochs=2, warmup_epochs=1,
    )  # fmt: skip
    sources = FolderSource(str(images / "train")), FolderSource(str(images / "val"))
    run = build_run(options, world(), StopGuard(world()), sources, "unused")
    reads.clear()
    list(run.task.loader)
    assert reads == [] and run.task.batches.per_epoch == 15 and len(run.task.loader.dataset.source.source.labels) == 12


def test_an_unreadable_image_fails_when_it_is_read(own_images):
    (own_images / "train" / "green" / "03.png").write_bytes(b"no image")
    kept = keep_decoded(FolderSource(str(own_images / "train")))
    assert isinstance(kept, MemorySource) and kept.read(10).size == (24, 20)
    with pytest.raises(DataError, match=r"cannot read the image .*green/03.png"):
        kept.read(11)
