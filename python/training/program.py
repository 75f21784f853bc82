# SPDX-License-Identifier: MIT
"""Common to programs: start and end (errors without a traceback, exit codes), and training."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence

from training.distributed import World, join_world, leave_world
from training.engine import fit
from training.errors import DataError, OptionError, UserError
from training.interrupt import Interrupted, StopGuard
from training.progress import Progress
from training.report import Report
from training.run import Run
from training.run_folder import choose_folder, make_folder
from training.run_state import restore
from training.shared_options import TrainingOptions


def run_program(main: Callable[[list[str]], object]) -> None:
    """Run `main` on the command line; exit with 2 for a wrong option, 1 for another error, 128 + n for signal n."""
    rank = int(os.environ.get("RANK", "0"))
    try:
        main(sys.argv[1:])
    except Interrupted as stop:
        sys.exit(128 + stop.signum)
    except KeyboardInterrupt:  # before training began, or in an evaluation: nothing to save
        sys.exit(128 + signal.SIGINT)
    except UserError as error:
        print(f"error{f' (rank {rank})' if rank else ''}: {error}", file=sys.stderr, flush=True)
        sys.exit(2 if isinstance(error, OptionError) else 1)
    leave_world()


def train(
    options: TrainingOptions,
    saved: dict | None,
    build: Callable[[World, StopGuard, str], Run],
    program: str,
    remarks: Sequence[str] = (),
) -> Run:
    """Train what `build(world, guard, output_dir)` assembles, from the checkpoint `saved` on if there is one.

    Args:
        options: checked options.
        saved: the content of a checkpoint, of `read_run`.
        build: makes the run at its beginning.
        program: how the user calls the program, for the command that continues a stopped run.
        remarks: lines that are printed at the beginning, of the options and the data.

    Raises:
        UserError: something the user can put right.
        Interrupted: stopped by a signal; the state was saved.
    """
    folder = choose_folder(options)
    world = join_world(options.device)
    with StopGuard(world) as guard:
        run = build(world, guard, folder)
        remarks = [*remarks, *(restore(run, saved) if saved else [])]
        report, progress = Report(run), Progress(world.is_main, options.log_seconds)
        if world.is_main:
            make_folder(folder)
            print(report.describe_start(), *remarks, "", sep="\n", flush=True)
        try:
            fit(run, report, progress)
        except (Interrupted, DataError):
            if world.is_main:
                print(f"saved; continue with: {program} --resume {report.last}", flush=True)
            raise
    if world.is_main:
        print("", report.describe_end(), sep="\n")
    return run
