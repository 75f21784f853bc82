# SPDX-License-Identifier: MIT
"""A sheet of detections on validation images: what a run has learned, to look at."""

from __future__ import annotations

import torch

from tasks.detection.data import collate
from tasks.detection.draw import draw_detection, sheet
from tasks.detection.evaluate import detect
from tasks.detection.task import Detection
from tasks.detection.transforms import EvaluationTransform
from training.run import Run

SHOWN = 12
SMALLEST_WIDTH = 256


def draw_validation(run: Run, path: str) -> None:
    """Write a PNG of the detections of `SHOWN` validation images."""
    task = run.task
    assert isinstance(task, Detection)
    evaluation = task.evaluation
    source, transform = evaluation.source, EvaluationTransform(task.sizes)
    run.model.eval()
    images = []
    for place in range(min(SHOWN, len(source))):
        index = place * len(source) // min(SHOWN, len(source))
        image, objects = source.read(index)
        batch = collate([(transform(image, objects), index)])
        with torch.no_grad():
            (found,) = detect(run.model, batch, task.compute, task.normalization, [source.size(index)])
        scale = max(1, round(SMALLEST_WIDTH / image.width))
        names = [category.name for category in source.categories]
        images.append(draw_detection(image, found, names, scale=scale))
    sheet(images, columns=4).save(path)
