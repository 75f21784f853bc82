"""A part of the images: by class, nested, seeded; and small sets stay decoded."""

import collections

import numpy
import pytest
from test_data import world
from training.data import TrainingBatches
from training.errors import DataError
from training.memory import MemorySource, keep_decoded
from training.options import Options
from training.sources import DigitsSource, FolderSource
from training.subset import select_images, take_fraction


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
    assert collections.Counter(train.labels) == {0: 8, 1: 8, 2: 8} and val.labels == [0, 0, 1, 1, 2, 2]
    distinct = {train.read(i).tobytes() for i in range(24)}
    assert len(distinct) == 12
    order = TrainingBatches(train, options, world())
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


def test_an_unreadable_image_fails_when_it_is_read(own_images):
    (own_images / "train" / "green" / "03.png").write_bytes(b"no image")
    kept = keep_decoded(FolderSource(str(own_images / "train")))
    assert isinstance(kept, MemorySource) and kept.read(10).size == (24, 20)
    with pytest.raises(DataError, match=r"cannot read the image .*green/03.png"):
        kept.read(11)
