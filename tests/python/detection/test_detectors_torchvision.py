"""RetinaNet's and R-CNN's losses against a computation of their own, and what is put in torchvision's hands."""

import math

import pytest
import torch
from small_detectors import batch, small_detector, small_images, target


def overlap(a, b):
    """Intersection over union, and over that of the box around both, of two boxes of numbers."""
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    common = width * height
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common
    around = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    return common / union, common / union - (around - union) / around


def matches(anchors, boxes):
    """Per anchor: the index of its object, −1 for none, −2 for neither. An object's best anchors always are its."""
    table = [[overlap(anchor, box)[0] for box in boxes] for anchor in anchors]
    best = [max(row[j] for row in table) for j in range(len(boxes))]
    found = []
    for row in table:
        first = max(range(len(row)), key=row.__getitem__)
        if row[first] >= 0.5 or any(value == best[j] for j, value in enumerate(row)):
            found.append(first)
        else:
            found.append(-2 if row[first] >= 0.4 else -1)
    return found


def focal(logit, positive):
    p = 1 / (1 + math.exp(-logit))
    return -0.25 * (1 - p) ** 2 * math.log(p) if positive else -0.75 * p**2 * math.log(1 - p)


def deltas(anchor, box):
    width, height = anchor[2] - anchor[0], anchor[3] - anchor[1]
    return (
        ((box[0] + box[2]) / 2 - (anchor[0] + anchor[2]) / 2) / width,
        ((box[1] + box[3]) / 2 - (anchor[1] + anchor[3]) / 2) / height,
        math.log((box[2] - box[0]) / width),
        math.log((box[3] - box[1]) / height),
    )


def decoded(anchor, delta):
    width, height = anchor[2] - anchor[0], anchor[3] - anchor[1]
    x = (anchor[0] + anchor[2]) / 2 + delta[0] * width
    y = (anchor[1] + anchor[3]) / 2 + delta[1] * height
    width, height = width * math.exp(delta[2]), height * math.exp(delta[3])
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


@pytest.mark.parametrize("box_loss", ["l1", "giou"])
def test_losses_of_retinanet(box_loss):
    detector = small_detector("retinanet", box_loss=box_loss)
    with torch.no_grad():  # not all alike, as at the beginning
        for parameter in detector.head.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    seen = {}
    detector.head.register_forward_hook(lambda module, args, outputs: seen.update(outputs))
    detector.anchor_generator.register_forward_hook(lambda module, args, outputs: seen.update(anchors=outputs))
    images, targets = batch()
    images.append(small_images((64, 96))[0])
    targets.append(target([], [], (64, 96)))
    losses = detector(images, targets)

    classes, boxes = 0.0, 0.0
    for index, objects in enumerate(targets):
        anchors = seen["anchors"][index].tolist()
        logits, regressed = seen["cls_logits"][index].tolist(), seen["bbox_regression"][index].tolist()
        given = objects["boxes"].tolist()
        found = matches(anchors, given) if given else [-1] * len(anchors)
        positives = max(1, sum(match >= 0 for match in found))
        for anchor, row, delta, match in zip(anchors, logits, regressed, found, strict=True):
            label = int(objects["labels"][match]) if match >= 0 else -1
            if match > -2:
                classes += sum(focal(logit, c == label) for c, logit in enumerate(row)) / positives
            if match >= 0 and box_loss == "l1":
                wanted = deltas(anchor, given[match])
                boxes += sum(abs(a - b) for a, b in zip(delta, wanted, strict=True)) / positives
            elif match >= 0:
                boxes += (1 - overlap(decoded(anchor, delta), given[match])[1]) / positives
    assert losses["class"].item() == pytest.approx(classes / 3, rel=1e-5)
    assert losses["box"].item() == pytest.approx(boxes / 3, rel=1e-5)


def test_anchors_of_the_scenes():
    """Two to 3.17 strides wide, around every cell's corner, of three shapes."""
    detector = small_detector("retinanet")
    seen = {}
    detector.anchor_generator.register_forward_hook(lambda module, args, outputs: seen.update(anchors=outputs))
    detector.eval()(small_images((64, 96)))
    (anchors,) = seen["anchors"]
    assert len(anchors) == 9 * (8 * 12 + 4 * 6 + 2 * 3)
    first = anchors[:9].tolist()
    for index, (left, top, right, bottom) in enumerate(first):
        ratio, size = (0.6, 1.0, 1.6)[index // 3], (16, 20.16, 25.36)[index % 3]
        assert (right - left) * (bottom - top) == pytest.approx(size**2, rel=0.1)  # they are of whole pixels
        assert (bottom - top) / (right - left) == pytest.approx(ratio, rel=0.2)


def test_retinanet_begins_with_rare_classes():
    detector = small_detector("retinanet")
    detector.head.register_forward_hook(
        lambda module, args, outputs: seen.append(outputs["cls_logits"].sigmoid().mean().item())
    )
    seen = []
    detector.eval()(batch()[0])
    assert seen[0] == pytest.approx(0.01, rel=0.2)


@pytest.mark.parametrize("name", ["retinanet", "faster-rcnn", "mask-rcnn"])
def test_images_are_neither_normalized_nor_resized_again(name):
    detector = small_detector(name).eval()
    transform = (detector if name == "retinanet" else detector.network).transform
    images, _ = batch()
    prepared, _ = transform(images)
    assert prepared.image_sizes == [(64, 96), (75, 50)] and prepared.tensors.shape == (2, 3, 96, 96)
    assert torch.equal(prepared.tensors[1, :, :75, :50], images[1])
    assert not prepared.tensors[1, :, 75:].any() and not prepared.tensors[1, :, :, 50:].any()


def test_losses_of_the_box_head_of_faster_rcnn():
    """Cross entropy over all sampled regions, background one class more, and boxes of the right class."""
    detector = small_detector("faster-rcnn")
    heads = detector.network.roi_heads
    seen = {}
    select = heads.select_training_samples

    def selecting(proposals, targets):
        chosen = select(proposals, targets)
        seen.update(labels=torch.cat(chosen[2]), wanted=torch.cat(chosen[3]))
        return chosen

    heads.select_training_samples = selecting
    heads.box_predictor.register_forward_hook(lambda m, a, outputs: seen.update(logits=outputs[0], boxes=outputs[1]))
    losses = detector(*batch())
    labels, rows = seen["labels"], torch.arange(len(seen["labels"]))
    assert set(labels.tolist()) == {0, 1, 2, 3}  # of objects 0 to 2, and background
    assert losses["class"].item() == pytest.approx(-seen["logits"].log_softmax(1)[rows, labels].mean().item(), rel=1e-5)
    chosen = seen["boxes"].unflatten(1, (4, 4))[rows, labels]
    difference = (chosen - seen["wanted"])[labels > 0].abs()
    smooth = torch.where(difference < 1 / 9, 4.5 * difference.square(), difference - 1 / 18)
    assert losses["box"].item() == pytest.approx(smooth.sum().item() / len(labels), rel=1e-5)
