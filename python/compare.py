# SPDX-License-Identifier: MIT
"""Compare networks of equal size with one recipe: the mix of affinities, each of its parts, and other layouts.

python python/compare.py --data-path CIFAR10          a GPU: every network, all images, within 10 minutes
                                                      a CPU: the mix and its parts on a fifth, within 15 minutes
python python/compare.py --data-path train.tar --val-path test.tar --models mix static --epochs 20 --fractions 1

Writes comparison.md (the table), comparison.png (the curves), comparison.json (everything), and a folder for each run,
as train.py makes it. The same command continues a comparison that was stopped; more --models or --seeds extend it.
"""

from __future__ import annotations

import os

from comparison.picture import draw_comparison
from comparison.record import Record, open_record
from comparison.results import summarize
from comparison.session import Session
from comparison.settings import Settings, complete
from comparison.table import write_table
from labelled_images.decoded_cache import keep_decoded
from labelled_images.sources import open_training_sources
from training.checkpoint import atomic_write
from training.distributed import join_world, launched_size
from training.errors import OptionError, TrainingError
from training.interrupt import StopGuard
from training.options import parse_explicit
from training.program import run_program
from training.run_folder import make_folder


def main(argv: list[str]) -> Record:
    """Compare, and return the record of all runs.

    Raises:
        UserError: something the user can put right.
        Interrupted: stopped by a signal; the state was saved.
    """
    explicit = parse_explicit(argv, __doc__, Settings)
    if launched_size() > 1:
        raise OptionError("--nproc-per-node: compare.py trains in one process; start it without torchrun")
    record = open_record(explicit.get("output_dir", Settings.output_dir))
    settings = complete(record.complete(explicit))
    make_folder(settings.output_dir)
    sources = open_training_sources(settings.data_path, settings.val_path)
    world = join_world(settings.device)
    with StopGuard(world) as guard:
        session = Session(settings, record, world, guard, tuple(map(keep_decoded, sources)))
        session.prepare()
        remarks = [remark for source in sources for remark in source.remarks]
        print(session.describe_start(), *remarks, sep="\n", flush=True)
        try:
            session.train_all()
        finally:
            write_results(record, settings.output_dir)
    if not record.runs:
        raise TrainingError("every run has diverged: choose a lower --lr, and another --output-dir")
    print("", write_table(record), sep="\n")
    print(f"written to {settings.output_dir}: comparison.md, comparison.png, comparison.json")
    return record


def write_results(record: Record, folder: str) -> None:
    """The table and the picture of what is finished."""
    if record.runs:
        record.results = summarize(record.runs)
        record.save()
        with atomic_write(os.path.join(folder, "comparison.md")) as file:
            file.write(write_table(record).encode())
        with atomic_write(os.path.join(folder, "comparison.png")) as file:
            draw_comparison(file, record)


if __name__ == "__main__":
    run_program(main)
