"""Pictures of detections."""

import numpy
import torch
from PIL import Image

from tasks.detection.draw import colour_of, draw_detection, sheet

DETECTION = {
    "boxes": torch.tensor([[10.0, 20, 30, 40], [50, 50, 60, 58]]),
    "labels": torch.tensor([1, 0]),
    "scores": torch.tensor([0.9, 0.2]),
}


def pixels_of(image, label):
    return (numpy.asarray(image) == colour_of(label)).all(-1)


def test_boxes_are_drawn_where_they_are():
    """Those above the threshold, inside of their last pixel, in the colour of their label."""
    blank = Image.new("RGB", (100, 80))
    drawn = draw_detection(blank, DETECTION, ["zero", "one"])
    found = pixels_of(drawn, 1)
    assert found[20:40, 10].all() and found[39, 10:30].all() and not found[41:].any()
    assert not pixels_of(drawn, 0).any()
    assert pixels_of(draw_detection(blank, DETECTION, ["zero", "one"], threshold=0.1), 0).any()
    assert numpy.array_equal(numpy.asarray(blank), numpy.zeros((80, 100, 3)))


def test_masks_scales_and_annotations():
    masks = torch.zeros(2, 80, 100, dtype=torch.bool)
    masks[0, 34:38, 22:28] = True  # below the caption
    annotation = {"boxes": DETECTION["boxes"], "labels": DETECTION["labels"], "masks": masks}
    drawn = draw_detection(Image.new("RGB", (100, 80)), annotation, ["zero", "one"], scale=2)
    assert drawn.size == (200, 160)
    inside = numpy.asarray(drawn)[70:74, 46:54]
    assert inside.max() > 0 and (inside == inside[0, 0]).all()
    assert pixels_of(drawn, 0).any() and pixels_of(drawn, 1).any()


def test_nothing_found():
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long), "scores": torch.zeros(0)}
    image = Image.new("L", (5, 4), 7)
    assert numpy.array_equal(numpy.asarray(draw_detection(image, empty, [])), numpy.full((4, 5, 3), 7))


def test_sheets():
    images = [Image.new("RGB", size, "red") for size in ((10, 20), (30, 10), (5, 5))]
    page = sheet(images, columns=2)
    assert page.size == (2 * 34 + 4, 2 * 24 + 4)
    assert (numpy.asarray(page) == (255, 0, 0)).all(-1).sum() == 10 * 20 + 30 * 10 + 5 * 5
    assert sheet(images[:1], columns=4).size == (10 + 8, 20 + 8)


def test_labels_have_different_colours():
    assert len({colour_of(label) for label in range(80)}) == 80
