"""Scenes of digits: the same on every machine, no digit of the held-out part, boxes and masks that fit."""

import hashlib

import numpy
import pytest

from tasks.detection.scenes import LARGE_DIGITS, SMALL_DIGITS, Scenes, digits, enlarge, mask_boxes

pytest.importorskip("sklearn")


def test_scenes_are_what_they_were():
    """Pixels, boxes and masks of a few scenes: another version of NumPy or another processor changes none."""
    digest = hashlib.sha256()
    for train in (True, False):
        for style in (SMALL_DIGITS, LARGE_DIGITS):
            source = Scenes(3, train, style=style)
            for index in range(3):
                image, objects = source.read(index)
                for part in (numpy.asarray(image), objects.boxes, objects.labels, objects.masks):
                    digest.update(numpy.ascontiguousarray(part).tobytes())
    assert digest.hexdigest() == DIGEST


DIGEST = "38a2201f2c2ea6a01fabd7ab33e952a340ad7fe7ea6fb7b23a93a09aa86f62ee"


def test_order_of_reading_does_not_matter():
    source, again = Scenes(5, True), Scenes(5, True)
    images = [numpy.asarray(source.read(index)[0]) for index in range(3)]
    for index in (2, 0, 1):
        assert numpy.array_equal(numpy.asarray(again.read(index)[0]), images[index])
    assert not numpy.array_equal(images[0], images[1])
    other_seed = numpy.asarray(Scenes(5, True, seed=1).read(0)[0])
    assert not numpy.array_equal(other_seed, images[0])


def test_parts_share_no_digit():
    train, held_out = ({glyph.tobytes() for glyph in digits(part)[0]} for part in (True, False))
    assert len(digits(True)[1]) == 1347 and len(digits(False)[1]) == 450
    assert not train & held_out


@pytest.mark.parametrize("style", [SMALL_DIGITS, LARGE_DIGITS], ids=["small", "large"])
def test_boxes_are_around_masks(style):
    source = Scenes(40, True, style=style)
    counts = []
    for index in range(40):
        image, objects = source.read(index)
        counts.append(len(objects))
        assert image.size == (style.size, style.size) == source.size(index)
        assert objects.masks.sum(0).max(initial=0) <= 1  # what is covered belongs to the upper one
        assert numpy.array_equal(objects.area, objects.masks.sum((1, 2)))
        assert numpy.array_equal(objects.boxes, mask_boxes(objects.masks))
        assert (objects.boxes[:, 2:] > objects.boxes[:, :2]).all()
    assert max(counts) > style.most // 2 and style.fewest <= numpy.mean(counts) <= style.most


def test_digits_stand_out():
    """Lighter than what lies around their strokes, by luminance of 256."""
    contrasts = []
    for index in range(20):
        image, objects = Scenes(20, True).read(index)
        grey = numpy.asarray(image.convert("L"), dtype=numpy.float64)
        for box, mask in zip(objects.boxes.astype(int), objects.masks, strict=True):
            inside = (slice(box[1], box[3]), slice(box[0], box[2]))
            if not mask[inside].all():
                contrasts.append(grey[mask].mean() - grey[inside][~mask[inside]].mean())
    assert min(contrasts) > 0 and numpy.mean(contrasts) > 35


def test_enlarging_is_linear_between_centres():
    image = numpy.array([[0.0, 1.0], [2.0, 3.0]])
    assert numpy.allclose(enlarge(image, 4, 2)[:, 0], [0, 0.5, 1.5, 2])
    assert numpy.array_equal(enlarge(image, 2, 2), image)
    assert enlarge(numpy.ones((1, 1)), 3, 5).shape == (3, 5)
