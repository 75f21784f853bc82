# SPDX-License-Identifier: MIT
"""Write a detector of `detect.py` as an ONNX file, for images of one size.

python python/export_detector.py RUN/best.pth                          RUN/best.onnx, for the size it was validated at
python python/export_detector.py RUN/best.pth --image-size 800 1216    height and width

The file takes `image`, uint8 (3, height, width), RGB, and gives `boxes` (N, 4) in its pixels, `labels` from 0, `scores`
and, of Mask R-CNN, `masks` (N, height, width), probabilities. The names of the labels are in its metadata.
It does not resize: give the size that images had in training, not that of the photos, and resize these before.
"""

from __future__ import annotations

from tasks.detection.export import ExportOptions, export
from training.options import parse_explicit
from training.program import run_program


def main(argv: list[str]) -> str:
    """Write, compare with the detector, and return the path of the file.

    Raises:
        UserError: something the user can put right.
    """
    return export(ExportOptions(**parse_explicit(argv, __doc__, ExportOptions)))


if __name__ == "__main__":
    run_program(main)
