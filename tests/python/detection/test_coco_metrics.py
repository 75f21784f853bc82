"""COCO's numbers: those of pycocotools on generated sets with crowds, images without objects, ties and masks."""

import contextlib
import io
import json

import numpy
import pytest
import torch
from annotated_images import write_coco

from tasks.detection.metrics import NUMBERS, CocoMetrics, as_results, describe_categories, write_results
from tasks.detection.scenes import Scenes
from tasks.detection.sources import open_source

pytest.importorskip("faster_coco_eval")


def generated(seed: int, masks: bool) -> dict:
    """Images of many sizes with objects of all areas: crowds, duplicates of a box, categories that none has."""
    random = numpy.random.default_rng(seed)
    images, annotations = [], []
    for number in range(12):
        height, width = (int(side) for side in random.integers(40, 300, 2))
        images.append({"id": 100 - number, "file_name": f"{number}.png", "height": height, "width": width})
        for _ in range(0 if number == 5 else int(random.integers(0, 9))):
            w, h = (int(random.integers(1, side)) for side in (width, height))
            x, y = int(random.integers(0, width - w + 1)), int(random.integers(0, height - h + 1))
            crowd = int(random.random() < 0.2)
            annotation = {
                "id": len(annotations) + 1,
                "image_id": 100 - number,
                "category_id": int(random.choice([2, 5, 9])),
                "bbox": [x, y, w, h],
                "area": w * h,
                "iscrowd": crowd,
            }
            if masks:
                annotation["segmentation"] = rectangle(height, width, x, y, w, h)
            annotations.append(annotation)
    return {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": i, "name": f"kind {i}"} for i in (2, 5, 7, 9)],
    }


def rectangle(height, width, x, y, w, h) -> dict:
    mask = numpy.zeros((height, width), dtype=bool)
    mask[y : y + h, x : x + w] = True
    flat = mask.flatten(order="F").astype(int)
    edges = numpy.flatnonzero(numpy.diff(numpy.concatenate([[0], flat, [1 - flat[-1]]])))
    counts = numpy.diff(numpy.concatenate([[0], edges])).tolist()
    return {"size": [height, width], "counts": counts}


def found_in(content: dict, seed: int, masks: bool) -> list[dict]:
    """Objects that moved a little, some twice and with equal scores, and inventions."""
    random = numpy.random.default_rng(seed)
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    results = []
    for annotation in content["annotations"]:
        for _ in range(int(random.integers(0, 3))):
            height, width = sizes[annotation["image_id"]]
            x, y, w, h = annotation["bbox"]
            x, y = (int(numpy.clip(v + random.integers(-3, 4), 0, s - 1)) for v, s in ((x, width), (y, height)))
            w, h = min(w, width - x), min(h, height - y)
            category = annotation["category_id"] if random.random() < 0.8 else 7
            result = {
                "image_id": annotation["image_id"],
                "category_id": category,
                "bbox": [x, y, w, h],
                "score": float(random.choice([0.9, 0.5, 0.5, random.random()])),
            }
            if masks:
                result["segmentation"] = as_text(rectangle(height, width, x, y, w, h))
            results.append(result)
    return results


def as_text(segmentation: dict) -> dict:
    from faster_coco_eval.core import mask as api

    rle = api.frPyObjects(segmentation, *segmentation["size"])
    counts = rle["counts"]
    return {"size": list(segmentation["size"]), "counts": counts if isinstance(counts, str) else counts.decode()}


def by_pycocotools(content: dict, results: list[dict], kind: str) -> list[float]:
    coco = pytest.importorskip("pycocotools.coco")
    evaluation = pytest.importorskip("pycocotools.cocoeval")
    with contextlib.redirect_stdout(io.StringIO()):
        truth = coco.COCO()
        truth.dataset = json.loads(json.dumps(content))
        truth.createIndex()
        judge = evaluation.COCOeval(truth, truth.loadRes(json.loads(json.dumps(results))), kind)
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return judge.stats.tolist()


@pytest.mark.parametrize("masks", [False, True], ids=["boxes", "masks"])
@pytest.mark.parametrize("seed", range(6))
def test_equal_to_pycocotools(tmp_path, seed, masks):
    content = generated(seed, masks)
    results = found_in(content, seed + 100, masks)
    source = open_source("--data-path", str(write_coco(tmp_path, content)), True)
    scores = CocoMetrics(source, range(len(source))).judge(results, masks)
    expected = by_pycocotools(content, results, "segm" if masks else "bbox")
    assert list(scores.numbers) == list(NUMBERS)
    numpy.testing.assert_allclose(list(scores.numbers.values()), expected, rtol=0, atol=1e-12)
    known = [ap for ap in scores.categories.values() if ap >= 0]
    assert scores.categories["kind 7"] == -1 and numpy.mean(known) == pytest.approx(scores.numbers["AP"])


def test_what_is_right_is_one():
    """The objects themselves are found: every number is 1 that is known; of large ones there are none."""
    source = Scenes(6, train=False)
    metrics = CocoMetrics(source, range(6))
    results = []
    for index in range(6):
        objects = source.objects(index)
        detection = {
            "boxes": torch.from_numpy(objects.boxes),
            "labels": torch.from_numpy(objects.labels),
            "scores": torch.full((len(objects),), 0.9),
            "masks": torch.from_numpy(objects.masks),
        }
        results += as_results(detection, index, source.categories)
    for masks in (False, True):
        numbers = metrics.judge(results, masks).numbers
        assert numbers["AP"] == pytest.approx(1) and numbers["AR100"] == pytest.approx(1) and numbers["APl"] == -1


@pytest.mark.parametrize("masks", [False, True], ids=["boxes", "masks"])
def test_nothing_found(masks):
    """Zero, not an error, and -1 where nothing is known."""
    source = Scenes(3, train=False)
    scores = CocoMetrics(source, range(3)).judge([], masks)
    assert scores.numbers["AP"] == 0 and scores.numbers["AR100"] == 0 and scores.numbers["APl"] == -1
    assert set(scores.categories.values()) <= {0.0, -1.0}


def test_images_without_objects_count(tmp_path):
    """What is found there is wrong: the precision of the same results falls."""
    content = generated(0, False)
    source = open_source("--data-path", str(write_coco(tmp_path, content)), True)
    right = [
        {"image_id": a["image_id"], "category_id": a["category_id"], "bbox": a["bbox"], "score": 0.5}
        for a in content["annotations"]
        if not a["iscrowd"]
    ]
    metrics = CocoMetrics(source, range(len(source)))
    wrong = {"image_id": 95, "category_id": right[0]["category_id"], "bbox": [1, 1, 9, 9], "score": 0.9}
    assert metrics.judge(right).numbers["AP"] == pytest.approx(1)
    assert metrics.judge([*right, wrong]).numbers["AP"] < 0.99


def test_a_part_of_the_images(tmp_path):
    """Those alone that were looked at count."""
    content = generated(1, False)
    source = open_source("--data-path", str(write_coco(tmp_path, content)), True)
    chosen = [0, 3, 4]
    ids = {source.image_id(index) for index in chosen}
    results = [result for result in found_in(content, 5, False) if result["image_id"] in ids]
    part = {
        **content,
        "images": [image for image in content["images"] if image["id"] in ids],
        "annotations": [a for a in content["annotations"] if a["image_id"] in ids],
    }
    scores = CocoMetrics(source, chosen).judge(results)
    numpy.testing.assert_allclose(list(scores.numbers.values()), by_pycocotools(part, results, "bbox"), atol=1e-12)


def test_files_and_tables(tmp_path):
    detection = {
        "boxes": torch.tensor([[1.0, 2, 4, 8]]),
        "labels": torch.tensor([3]),
        "scores": torch.tensor([0.25], dtype=torch.float16),
        "masks": torch.ones(1, 3, 5, dtype=torch.bool),
    }
    source = Scenes(1, train=True)
    results = as_results(detection, 7, source.categories)
    write_results(tmp_path / "results.json", results)
    read = json.loads((tmp_path / "results.json").read_text())
    assert read == results and read[0]["bbox"] == [1, 2, 3, 6] and read[0]["category_id"] == 3
    assert read[0]["segmentation"]["size"] == [3, 5] and isinstance(read[0]["segmentation"]["counts"], str)
    lines = describe_categories(CocoMetrics(source, [0]).judge([]))
    assert len(lines) == 4 and "0 " in lines[0]
