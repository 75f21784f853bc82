# SPDX-License-Identifier: MIT
"""Train features without labels by DINO, with CONTAINER or any other network of timm, and judge them by neighbours.

python python/dino.py                                             handwritten digits, minutes on a CPU
python python/dino.py --data-path IMAGENET --output-dir RUN       the official recipe of 100 epochs
torchrun --nproc-per-node 8 python/dino.py --data-path …          one process per GPU
python python/dino.py --resume RUN/last.pth                       continue a run with its options
python python/train.py --initial-checkpoint RUN/best.pth …        a classifier from the teacher's weights
"""

from __future__ import annotations

from tasks.dino.build import build_run, open_sources
from tasks.dino.option_checks import check, resolve
from tasks.dino.options import DinoOptions
from tasks.dino.task import Dino
from training.checkpoint import read_run
from training.distributed import launched_size
from training.option_checks import require_file
from training.options import parse_explicit
from training.program import run_program, train
from training.run import Run


def main(argv: list[str]) -> Run:
    """Train, and return the finished run.

    Raises:
        UserError: something the user can put right.
        Interrupted: stopped by a signal; the state was saved.
    """
    explicit = parse_explicit(argv, __doc__, DinoOptions)
    require_file("resume", explicit.get("resume"))
    saved = read_run(explicit["resume"], Dino.name) if "resume" in explicit else None
    options = resolve(explicit, saved["options"] if saved else None)
    check(options, set(explicit), launched_size())
    sources = open_sources(options)
    remarks = [*sources[0].remarks, *sources[1].remarks]

    def build(world, guard, folder):
        return build_run(options, world, guard, sources, folder)

    return train(options, saved, build, "python python/dino.py", remarks)


if __name__ == "__main__":
    run_program(main)
