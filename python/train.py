# SPDX-License-Identifier: MIT
"""Train an image classifier: CONTAINER or any other model of timm, with the recipe of DeiT.

python python/train.py                                          handwritten digits, a minute on a CPU
python python/train.py --data-path IMAGENET --output-dir RUN    the recipe of the release
torchrun --nproc-per-node 8 python/train.py --data-path …       one process per GPU
python python/train.py --resume RUN/last.pth                    continue a run with its options
python python/train.py --eval --resume RUN/best.pth             evaluate only
"""

from __future__ import annotations

from labelled_images.class_order import question_order
from labelled_images.sources import open_training_sources
from tasks.classification.build import build_run
from tasks.classification.defaults import give_way
from tasks.classification.option_checks import check, resolve
from tasks.classification.options import Options
from tasks.classification.task import Classification
from tasks.classification.validation import judge_checkpoint, settings_from
from training.checkpoint import read_run
from training.distributed import launched_size
from training.option_checks import require_file
from training.options import parse_explicit
from training.program import run_program, train
from training.run import Run


def main(argv: list[str]) -> Run | None:
    """Train, and return the finished run; with --eval only evaluate.

    Raises:
        UserError: something the user can put right.
        Interrupted: stopped by a signal; the state was saved.
    """
    explicit = parse_explicit(argv, __doc__, Options)
    require_file("resume", explicit.get("resume"))
    resumes = "resume" in explicit and not explicit.get("eval")
    saved = read_run(explicit["resume"], Classification.name) if resumes else None
    options = resolve(explicit, saved["options"] if saved else None)
    options, adjusted = (options, []) if saved else give_way(options, explicit, launched_size())
    check(options, set(explicit), launched_size())
    if options.eval:
        judge_checkpoint(settings_from(explicit))
        return None
    train_source, val_source = open_training_sources(options.data_path, options.val_path, options.class_order)
    remarks = [*adjusted, *train_source.remarks, *val_source.remarks]
    remarks += question_order(
        options.initial_checkpoint, train_source.classes, options.class_order, "class_order" in explicit
    )

    def build(world, guard, folder):
        return build_run(options, world, guard, (train_source, val_source), folder)

    return train(options, saved, build, "python python/train.py", remarks)


if __name__ == "__main__":
    run_program(main)
