# SPDX-License-Identifier: MIT
"""Find objects in images with a detector of `detect.py`: pictures to look at, and COCO's json.

python python/detect_images.py RUN/best.pth photo.jpg             detections/sheet.png and detections/detections.json
python python/detect_images.py RUN/best.pth FOLDER --threshold 0.3 --output-dir found

Sheets show boxes, labels, scores and masks from --threshold on. The json is a COCO data set of the images with
annotations that have a score, from --threshold on, too.
"""

from __future__ import annotations

from tasks.detection.prediction import PredictionOptions, predict
from training.options import parse_explicit
from training.program import run_program


def main(argv: list[str]) -> dict:
    """Detect, draw and write; returns the content of the json.

    Raises:
        UserError: something the user can put right.
    """
    return predict(PredictionOptions(**parse_explicit(argv, __doc__, PredictionOptions)))


if __name__ == "__main__":
    run_program(main)
