# SPDX-License-Identifier: MIT
"""Train a detector on a backbone of ours, or on any other network of timm, and judge it by COCO's numbers.

python python/detect.py                                             handwritten digits in scenes, minutes on a CPU
python python/detect.py --data-path COCO --backbone-checkpoint PTH  the recipe of PVT: 12 epochs
python python/detect.py --detector deformable-detr --data-path …    also mask-rcnn, faster-rcnn, detr, smca-detr, …
torchrun --nproc-per-node 8 python/detect.py --data-path …          one process per GPU
python python/detect.py --initial-checkpoint RUN/best.pth --data-path …   fine-tune a detector, also on other objects
python python/detect.py --resume RUN/last.pth                       continue a run with its options
python python/detect.py --eval RUN/best.pth                         COCO's numbers of a detector, and its results.json
python python/detect.py --check-data --data-path COCO               list what is wrong with the annotations
"""

from __future__ import annotations

import os

from tasks.detection.build import build_run, open_sources
from tasks.detection.detectors import describe_backbones, preset
from tasks.detection.option_checks import check, resolve
from tasks.detection.options import DetectionOptions
from tasks.detection.pictures import draw_validation
from tasks.detection.sources import check_files
from tasks.detection.task import Detection
from tasks.detection.validation import judge_checkpoint
from training.checkpoint import read_run
from training.distributed import launched_size
from training.option_checks import require_file
from training.options import parse_explicit
from training.program import run_program, train
from training.run import Run


def main(argv: list[str]) -> Run | None:
    """Train, and return the finished run; with --eval, --check-data or --list-backbones only that.

    Raises:
        UserError: something the user can put right.
        Interrupted: stopped by a signal; the state was saved.
    """
    explicit = parse_explicit(argv, __doc__, DetectionOptions)
    require_file("resume", explicit.get("resume"))
    saved = read_run(explicit["resume"], Detection.name) if "resume" in explicit else None
    options = resolve(explicit, saved["options"] if saved else None)
    check(options, set(explicit), launched_size())
    if options.list_backbones:
        print(describe_backbones(preset("coco", options.detector).strides))
        return None
    if options.check_data:
        check_files(options.data_path, options.val_path)
        return None
    if options.eval:
        judge_checkpoint(options, explicit)
        return None
    sources = open_sources(options)
    remarks = [*sources[0].remarks, *sources[1].remarks]

    def build(world, guard, folder):
        run, more = build_run(options, world, guard, sources, folder)
        remarks.extend(more)
        return run

    run = train(options, saved, build, "python python/detect.py", remarks)
    if run.world.is_main:
        picture = os.path.join(run.output_dir, "detections.png")
        draw_validation(run, picture)
        print(f"detections      {picture}")
    return run


if __name__ == "__main__":
    run_program(main)
