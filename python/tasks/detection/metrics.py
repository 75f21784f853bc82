# SPDX-License-Identifier: MIT
"""COCO's twelve numbers for boxes and masks, by faster-coco-eval, and per category.

Crowds are ignored: what is found in them is neither right nor wrong. A number that nothing is known of, as the average
precision of large objects where there are none, is -1, as COCO prints it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy
import torch

from tasks.detection.annotations import Category, Source
from tasks.detection.segmentation import encode_mask
from training.errors import DataError

NUMBERS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
MOST_DETECTIONS = 100  # of an image, that count

Result = dict[str, Any]
"""A detection as COCO's result files have it: image_id, category_id, bbox (x, y, w, h), score[, segmentation]."""


@dataclasses.dataclass(frozen=True)
class Scores:
    """The numbers of `NUMBERS`, and the AP of each category by its name."""

    numbers: dict[str, float]
    categories: dict[str, float]


def as_results(detection: Mapping[str, torch.Tensor], image_id: int, categories: list[Category]) -> list[Result]:
    """The detections of one image as COCO's results.

    Args:
        detection: boxes (N, 4), x1, y1, x2, y2 in pixels of the image; scores (N,); labels (N,), indices of
            `categories`; where there are masks, masks (N, H, W) bool.
    """
    boxes = detection["boxes"].detach().to("cpu", torch.float64)
    boxes = torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1).tolist()
    scores, labels = detection["scores"].detach().double().tolist(), detection["labels"].tolist()
    results = [
        {"image_id": image_id, "category_id": categories[label].id, "bbox": box, "score": score}
        for box, score, label in zip(boxes, scores, labels, strict=True)
    ]
    if "masks" in detection:
        for result, mask in zip(results, detection["masks"].cpu().numpy(), strict=True):
            result["segmentation"] = encode_mask(mask)
    return results


class CocoMetrics:
    """Judges results against images `indices` of `source`.

    Raises:
        DataError: faster-coco-eval is missing.
    """

    def __init__(self, source: Source, indices: Iterable[int]):
        self.categories = source.categories
        self.has_masks = source.has_masks
        self._truth = _load(_ground_truth(source, list(indices)))

    def judge(self, results: list[Result], masks: bool = False) -> Scores:
        """The scores of `results`, by boxes or by `masks`; their order matters only among equal scores of an image."""
        from faster_coco_eval import COCOeval_faster

        if not results:
            return self._nothing_found(masks)
        with contextlib.redirect_stdout(io.StringIO()):
            found = self._truth.loadRes([dict(result) for result in results])
            evaluation = COCOeval_faster(self._truth, found, "segm" if masks else "bbox")
            evaluation.run()
        stats = [float(number) for number in evaluation.stats[: len(NUMBERS)]]
        precision = evaluation.eval["precision"][:, :, :, 0, -1]  # of all areas and `MOST_DETECTIONS`
        by_id = dict(zip(evaluation.params.catIds, numpy.moveaxis(precision, 2, 0), strict=True))
        categories = {category.name: _mean(by_id[category.id]) for category in self.categories}
        return Scores(dict(zip(NUMBERS, stats, strict=True)), categories)

    def _nothing_found(self, masks: bool) -> Scores:
        """As for a detection of every category that is wrong, which changes no number from 0, or from -1 to another."""
        image = self._truth.dataset["images"][0]
        wrong = {"image_id": image["id"], "bbox": [0.0, 0.0, 1e-3, 1e-3], "score": 0.0}
        if masks:
            wrong["segmentation"] = encode_mask(numpy.zeros((image["height"], image["width"]), dtype=bool))
        return self.judge([{**wrong, "category_id": category.id} for category in self.categories], masks)


def write_results(path: str, results: list[Result]) -> None:
    """As a file that COCO's server and tools take."""
    with open(path, "w") as file:
        json.dump(results, file)


def describe_categories(scores: Scores, columns: int = 3) -> list[str]:
    """A table of the AP of each category, in lines."""
    width = max(map(len, scores.categories), default=0)
    cells = [f"{name:{width}} {'   -' if ap < 0 else f'{ap:.2f}'}" for name, ap in scores.categories.items()]
    rows = -(-len(cells) // columns)
    return ["   ".join(cells[row::rows]) for row in range(rows)]


def _mean(precision: numpy.ndarray) -> float:
    known = precision[precision > -1]
    return float(known.mean()) if known.size else -1.0


def _ground_truth(source: Source, indices: list[int]) -> dict:
    images, annotations = [], []
    for index in indices:
        height, width = source.size(index)
        images.append({"id": source.image_id(index), "height": height, "width": width})
        objects = source.objects(index)
        for number in range(len(objects)):
            x1, y1, x2, y2 = objects.boxes[number].astype(numpy.float64).tolist()
            annotation = {
                "id": len(annotations) + 1,
                "image_id": source.image_id(index),
                "category_id": source.categories[objects.labels[number]].id,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": float(objects.area[number]),
                "iscrowd": int(objects.crowd[number]),
            }
            if objects.masks is not None:
                annotation["segmentation"] = encode_mask(objects.masks[number])
            annotations.append(annotation)
    categories = [dataclasses.asdict(category) for category in source.categories]
    return {"images": images, "annotations": annotations, "categories": categories}


def _load(content: dict):
    try:
        from faster_coco_eval import COCO
    except ImportError as error:
        raise DataError("evaluation needs faster-coco-eval: pip install 'container_kernels[detection]'") from error
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(content)
