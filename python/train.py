# SPDX-License-Identifier: MIT
"""Train an image classifier: CONTAINER or any other model of timm, with the recipe of DeiT.

python python/train.py                                          handwritten digits, a minute on a CPU
python python/train.py --data-path IMAGENET --output-dir RUN    the recipe of the release
torchrun --nproc-per-node 8 python/train.py --data-path …       one process per GPU
python python/train.py --resume RUN/last.pth                    continue a run with its options
python python/train.py --eval --resume RUN/best.pth             evaluate only
"""

from __future__ import annotations

from tasks.classification.build import Run, build_run
from tasks.classification.class_order import question_order
from tasks.classification.defaults import give_way
from tasks.classification.option_checks import check, require_file, resolve
from tasks.classification.sources import open_training_sources
from tasks.classification.validation import judge_checkpoint, settings_from
from training.checkpoint import read_run
from training.distributed import join_world, launched_size
from training.engine import fit
from training.errors import DataError
from training.interrupt import Interrupted, StopGuard
from training.options import parse_explicit
from training.program import run_program
from training.progress import Progress
from training.report import Report
from training.run_folder import choose_folder, make_folder
from training.run_state import restore


def main(argv: list[str]) -> Run | None:
    """Train, and return the finished run; with --eval only evaluate.

    Raises:
        UserError: something the user can put right.
        Interrupted: stopped by a signal; the state was saved.
    """
    explicit = parse_explicit(argv, __doc__)
    require_file("resume", explicit.get("resume"))
    resumes = "resume" in explicit and not explicit.get("eval")
    saved = read_run(explicit["resume"]) if resumes else None
    options = resolve(explicit, saved["options"] if saved else None)
    options, adjusted = (options, []) if saved else give_way(options, explicit, launched_size())
    check(options, set(explicit), launched_size())
    if options.eval:
        judge_checkpoint(settings_from(explicit))
        return None

    train, val = open_training_sources(options.data_path, options.val_path, options.class_order)
    folder = choose_folder(options)
    world = join_world(options.device)
    with StopGuard(world) as guard:
        run = build_run(options, world, guard, (train, val), folder)
        remarks = [*adjusted, *train.remarks, *val.remarks, *question_order(options, explicit, train.classes)]
        remarks += restore(run, saved) if saved else []
        report, progress = Report(run), Progress(world.is_main, options.log_seconds)
        if world.is_main:
            make_folder(folder)
            print(report.describe_start(), *remarks, "", sep="\n", flush=True)
        try:
            fit(run, report, progress)
        except (Interrupted, DataError):
            if world.is_main:
                print(f"saved; continue with: python python/train.py --resume {report.last}", flush=True)
            raise
    if world.is_main:
        print("", report.describe_end(), sep="\n")
    return run


if __name__ == "__main__":
    run_program(main)
