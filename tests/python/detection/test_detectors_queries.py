"""DETR's family: losses against a small computation of their own, answers, and how weights begin."""

import itertools
import math

import pytest
import torch
from small_detectors import CLASSES, WITH_QUERIES, batch, small_detector, small_images
from torch.nn import functional

pytest.importorskip("transformers", reason="needs the extra: pip install -e '.[detection]'")
pytest.importorskip("scipy", reason="needs the extra: pip install -e '.[detection]'")

from tasks.detection.detectors.set_loss import SetLoss


def corners(box):
    x, y, width, height = box
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def giou(a, b):
    a, b = corners(a), corners(b)
    common = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common
    around = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    return common / union - (around - union) / around


def l1(a, b):
    return sum(abs(x - y) for x, y in zip(a, b, strict=True))


def focal_parts(logit):
    """The focal loss of a sigmoid whose class is there, and of one whose class is not."""
    p = 1 / (1 + math.exp(-logit))
    return -0.25 * (1 - p) ** 2 * math.log(p), -0.75 * p**2 * math.log(1 - p)


def best_queries(cost, queries, objects):
    """Of all ways to give every object a query of its own, the one that costs least."""
    ways = itertools.permutations(range(queries), objects)
    return min(ways, key=lambda way: sum(cost(query, index) for index, query in enumerate(way)))


def expected_losses(logits, boxes, targets, focal, no_object=0.1):
    """Sums over layers: class, box and giou, weighted."""
    count = max(1, sum(len(t["class_labels"]) for t in targets))
    classes = box = overlap = 0.0
    for layer_logits, layer_boxes in zip(logits.tolist(), boxes.tolist(), strict=True):
        weighted = weights = 0.0
        for rows, places, objects in zip(layer_logits, layer_boxes, targets, strict=True):
            labels, given = objects["class_labels"].tolist(), objects["boxes"].tolist()
            chances = torch.tensor(rows).softmax(1).tolist()

            def cost(query, index, rows=rows, places=places, labels=labels, given=given, chances=chances):
                if focal:
                    there, not_there = focal_parts(rows[query][labels[index]])
                    of_class = 2 * (there - not_there)
                else:
                    of_class = -chances[query][labels[index]]
                place = places[query]
                return of_class + 5 * l1(place, given[index]) - 2 * giou(place, given[index])

            way = best_queries(cost, len(rows), len(labels))
            label_of = {query: labels[index] for index, query in enumerate(way)}
            for index, query in enumerate(way):
                box += 5 * l1(places[query], given[index]) / count
                overlap += 2 * (1 - giou(places[query], given[index])) / count
            for query, row in enumerate(rows):
                if focal:
                    parts = (focal_parts(x)[0 if c == label_of.get(query) else 1] for c, x in enumerate(row))
                    classes += 2 * sum(parts) / count
                else:
                    label = label_of.get(query, len(row) - 1)
                    weight = 1.0 if query in label_of else no_object
                    weighted -= weight * math.log(chances[query][label])
                    weights += weight
        if not focal:
            classes += weighted / weights
    return {"class": classes, "box": box, "giou": overlap}


@pytest.mark.parametrize("focal", [False, True], ids=["softmax", "focal"])
def test_set_loss(focal):
    torch.manual_seed(0)
    layers, queries = 3, 5
    logits = torch.randn(layers, 3, queries, CLASSES + (not focal))
    boxes = torch.rand(layers, 3, queries, 4) * 0.4 + 0.2
    targets = [
        {"class_labels": torch.tensor([2, 0, 2]), "boxes": torch.rand(3, 4) * 0.4 + 0.2},
        {"class_labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.5, 1.0, 1.0]])},
        {"class_labels": torch.zeros(0, dtype=torch.int64), "boxes": torch.zeros(0, 4)},
    ]
    losses = SetLoss(CLASSES, focal)(logits, boxes, targets)
    for name, expected in expected_losses(logits, boxes, targets, focal).items():
        assert losses[name].item() == pytest.approx(expected, rel=2e-5), name
    assert SetLoss(CLASSES, focal).state_dict() == {}


def test_set_loss_divides_by_the_objects_of_a_rank_on_average(monkeypatch):
    """As if the other rank had four objects: 2.5 each."""
    logits, boxes = torch.randn(1, 1, 3, 2), torch.rand(1, 1, 3, 4) * 0.4 + 0.2
    targets = [{"class_labels": torch.tensor([0]), "boxes": torch.tensor([[0.5, 0.5, 0.1, 0.1]])}]
    alone = SetLoss(2, True)(logits, boxes, targets)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda count: count.add_(4))
    for name, loss in SetLoss(2, True)(logits, boxes, targets).items():
        torch.testing.assert_close(loss, alone[name] / 2.5)


def test_set_loss_of_what_is_not_finite_is_not_finite():
    boxes = torch.full((1, 1, 2, 4), 0.5, requires_grad=True)
    targets = [{"class_labels": torch.tensor([0]), "boxes": torch.tensor([[0.5, 0.5, 0.1, 0.1]])}]
    losses = SetLoss(1, True)(torch.full((1, 1, 2, 1), math.nan), boxes, targets)
    assert all(loss.isnan() for loss in losses.values())


@pytest.mark.parametrize("name", WITH_QUERIES)
@pytest.mark.parametrize("auxiliary", [True, False])
def test_losses_are_those_of_all_layers_in_pixels_of_the_image(name, auxiliary):
    detector = small_detector(name, decoder_layers=3, auxiliary_losses=auxiliary)
    images, targets = batch()
    seen = {}
    predict = detector.predict
    detector.predict = lambda *args: seen.setdefault("outputs", predict(*args))
    losses = detector(images, targets)
    logits, boxes = (tensor.detach() for tensor in seen["outputs"])
    assert logits.shape == (3, 2, 6, CLASSES + (name == "detr")) and boxes.shape == (3, 2, 6, 4)
    assert not torch.equal(logits[0], logits[1]) and not torch.equal(logits[1], logits[2])
    normalized = []
    for image, objects in zip(images, targets, strict=True):
        height, width = image.shape[1:]
        left, top, right, bottom = objects["boxes"].unbind(1)
        middle = torch.stack([(left + right) / 2 / width, (top + bottom) / 2 / height], 1)
        size = torch.stack([(right - left) / width, (bottom - top) / height], 1)
        normalized.append({"class_labels": objects["labels"], "boxes": torch.cat([middle, size], 1)})
    paying = slice(None) if auxiliary else slice(2, None)
    expected = expected_losses(logits[paying], boxes[paying], normalized, focal=name != "detr")
    for key, value in expected.items():
        assert losses[key].item() == pytest.approx(value, rel=1e-4), key


@pytest.mark.parametrize("name", WITH_QUERIES)
def test_evaluation_answers_with_the_last_layer(name):
    detector = small_detector(name, detections=7).eval()
    image = small_images((64, 80))[0]
    pixels, mask, sizes = functional.pad(image, (0, 16))[None], torch.ones(1, 64, 96, dtype=torch.bool), [[80, 64]]
    mask[..., 80:] = False
    with torch.no_grad():
        logits, boxes = detector.predict(pixels, mask, torch.tensor(sizes))
        (found,) = detector([image])
    answers = []
    for row, box in zip(logits[-1, 0], boxes[-1, 0], strict=True):
        scores = row.softmax(0)[:-1] if name == "detr" else row.sigmoid()
        chosen = [scores.argmax().item()] if name == "detr" else range(CLASSES)
        scale = torch.tensor([80, 64, 80, 64])
        answers += [(scores[c].item(), c, torch.tensor(corners(box.tolist())).clamp(0, 1) * scale) for c in chosen]
    answers = sorted(answers, key=lambda answer: -answer[0])[:7]
    assert found["scores"].tolist() == pytest.approx([score for score, _, _ in answers], rel=1e-4)
    assert len(found["labels"]) == min(7, len(answers))
    for label, box, (_, expected_label, expected_box) in zip(found["labels"], found["boxes"], answers, strict=True):
        assert label == expected_label
        torch.testing.assert_close(box, expected_box, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("name", WITH_QUERIES)
def test_beginning_is_the_official_one(name):
    detector = small_detector(name, d_model=64, ffn=64)
    network, model = detector.network, detector.network.model
    assert model.encoder.dropout == 0.0
    assert 0.9 < model.query_position_embeddings.weight.std() < 1.1
    if name == "deformable-detr":
        layer = model.decoder.layers[0].self_attn
        assert model.reference_points.bias.eq(0).all() and model.level_embed.std() > 0.5
        assert model.input_proj[0][0].bias.eq(0).all()
        cross = model.decoder.layers[0].encoder_attn
        assert cross.sampling_offsets.weight.eq(0).all() and cross.sampling_offsets.bias.abs().max() == 2  # two points
    else:
        layer = model.encoder.layers[0].self_attn
    bound = math.sqrt(6 / (4 * 64))  # of one matrix (3 d, d)
    for projection in (layer.q_proj, layer.k_proj, layer.v_proj):
        assert 0.95 * bound < projection.weight.abs().max() <= bound and projection.bias.eq(0).all()
    assert layer.o_proj.bias.eq(0).all()
    assert 0.95 < layer.o_proj.weight.abs().max() / math.sqrt(6 / 128) <= 1
    fc1 = model.encoder.layers[0].mlp.fc1
    assert 0.95 < fc1.weight.abs().max() / math.sqrt(6 / 128) <= 1 and 0 < fc1.bias.abs().max() <= 1 / 8
    if name == "smca-detr":
        for head in detector.spots:
            assert head.scale.weight.eq(0).all() and head.scale.bias.eq(1).all()
    if name == "conditional-detr":
        last = network.bbox_predictor.layers[-1]
        assert last.weight.eq(0).all() and last.bias.eq(0).all()


@pytest.mark.parametrize("name", WITH_QUERIES[1:])
def test_every_class_begins_with_one_percent(name):
    detector = small_detector(name).eval()
    heads = detector.network.class_embed if name == "deformable-detr" else [detector.network.class_labels_classifier]
    for head in heads:
        torch.testing.assert_close(head.bias.sigmoid(), torch.full((CLASSES,), 0.01))
        with torch.no_grad():
            head.weight.zero_()
    (found,) = detector(small_images((64, 64)))
    torch.testing.assert_close(found["scores"], torch.full_like(found["scores"], 0.01))


@pytest.mark.parametrize("refinement", [True, False])
def test_heads_of_deformable_detr(refinement):
    """With refinement every layer has its own; boxes begin small, and stay where the first layer put them."""
    detector = small_detector("deformable-detr", decoder_layers=3, box_refinement=refinement)
    network = detector.network
    for heads in (network.class_embed, network.bbox_embed):
        weights = {id(parameter) for head in heads for parameter in head.parameters()}
        one = len([*heads[0].parameters()])
        assert len(weights) == (3 * one if refinement else one)
    assert (network.model.decoder.bbox_embed is network.bbox_embed) == refinement
    network.tie_weights()  # transformers' own ties nothing
    assert (network.class_embed[0].weight is network.class_embed[1].weight) == (not refinement)
    images, targets = batch()
    _, boxes = detector.predict(
        torch.stack(small_images((64, 64))), torch.ones(1, 64, 64) > 0, torch.tensor([[64, 64]])
    )
    torch.testing.assert_close(boxes[..., 2:], torch.full_like(boxes[..., 2:], -2.0).sigmoid())
    torch.testing.assert_close(boxes[1:], boxes[:-1])
    sum(detector(images, targets).values()).backward()
    assert all(parameter.grad is not None for parameter in detector.parameters())


def test_deformable_detr_runs_on_our_operation(monkeypatch):
    from container_kernels.integrations import ms_deform_attn

    calls = []
    operation = ms_deform_attn.deformable_attention
    monkeypatch.setattr(ms_deform_attn, "deformable_attention", lambda *args: calls.append(1) or operation(*args))
    detector = small_detector("deformable-detr", encoder_layers=2, decoder_layers=3, levels=4)
    detector(*batch())
    assert len(calls) == 5


def test_dropout_is_where_the_official_programs_have_it():
    for name in WITH_QUERIES:
        config = small_detector(name, dropout=0.3).network.config
        assert config.dropout == config.attention_dropout == config.activation_dropout == 0.3


@pytest.mark.slow
def test_detr_learns_eight_scenes_by_heart():
    """Plain DETR is too slow a learner for a demonstration; this shows that nothing in it is broken."""
    numpy = pytest.importorskip("numpy")
    from torchvision.ops import box_iou

    from tasks.detection.detectors import build_detector, preset
    from tasks.detection.scenes import LARGE_DIGITS, Scenes

    scenes = Scenes(8, True, style=LARGE_DIGITS)
    images, targets = [], []
    for index in range(8):
        image, objects = scenes.read(index)
        images.append(torch.from_numpy(numpy.array(image)).permute(2, 0, 1).float() / 127.5 - 1)
        targets.append({"boxes": torch.from_numpy(objects.boxes), "labels": torch.from_numpy(objects.labels)})
    torch.manual_seed(0)
    detector = build_detector("detr", 10, preset("scenes", "detr"))
    optimizer = torch.optim.AdamW(detector.parameters(), lr=3e-4, weight_decay=0.05)
    for _ in range(300):  # after 150 it finds all of them (one seed)
        optimizer.zero_grad()
        sum(detector(images, targets).values()).backward()
        torch.nn.utils.clip_grad_norm_(detector.parameters(), 0.1)
        optimizer.step()
    detector.eval()
    right = total = 0
    with torch.no_grad():
        for objects, wanted in zip(detector(images), targets, strict=True):
            sure = objects["scores"] > 0.5
            overlaps = box_iou(wanted["boxes"], objects["boxes"][sure])
            same = wanted["labels"][:, None] == objects["labels"][sure]
            right += int(((overlaps > 0.6) & same).any(1).sum()) if sure.any() else 0
            total += len(wanted["labels"])
    assert right >= 0.8 * total > 8
