# SPDX-License-Identifier: MIT
"""Kernels of the table's problems, compiled by many processes at once into the compilers' caches on disk.

    python -m bench.gpu_check.precompile --only fused_mlp --jobs 16     ours, on every backend
    python -m bench.gpu_check.precompile --only model --compile light   torch.compile too, where a name has the word

A table that runs afterwards finds them compiled and spends its time measuring. Every contender runs once; whether it is
right is for the table. What fails is printed and does not change the exit status.
"""

import argparse
import multiprocessing
import os
import re
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed

Task = tuple[str, str, bool, str, str]


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_options(arguments)
    # Torch's compiler begins helpers of its own in each process.
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
    failed = 0
    # A process that has used CUDA cannot be forked.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.jobs, context) as pool:
        for _ in range(options.jobs):
            pool.submit(begin)  # while this process imports the same
        work = tasks(options)
        futures = {pool.submit(run_once, *task): task for task in work}
        for number, future in enumerate(as_completed(futures), 1):
            *_, problem, name = futures[future]
            error = future.exception()
            failed += error is not None
            result = "compiled" if error is None else f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
            print(f"{number} of {len(work)}: {problem}: {name}: {result}", flush=True)
    print(f"{len(work) - failed} of {len(work)} compiled")
    return 0


def begin() -> None:
    """Make a process of the pool ready: many share the cores."""
    import torch

    from bench.problems import sections  # noqa: F401 - takes longer than most kernels

    torch.set_num_threads(1)


def tasks(options: argparse.Namespace) -> list[Task]:
    """(device, section, quick, problem, contender) of everything to run, what takes longest first."""
    from bench.names import BACKENDS, COMPILED, NOT_FUSED, OURS
    from bench.problems.problem import contender_names
    from bench.problems.sections import SECTIONS, all_problems, small_problems

    make = small_problems if options.quick else all_problems
    ours, compiled = [], []
    for section in options.only.split(","):
        if section not in SECTIONS:
            sys.exit(f"--only: expected some of {', '.join(SECTIONS)}, got {section!r}")
        for problem in make(options.device, [section])[: 1 if options.quick else None]:
            if options.match and not options.match.search(problem.name):
                continue
            task = (options.device, section, options.quick, problem.name)
            ours += [(*task, name) for name in contender_names(problem) if name in (OURS, NOT_FUSED, *BACKENDS)]
            if options.compile and options.compile.search(problem.name):
                compiled.append((*task, COMPILED))
    return [*compiled, *ours]


def run_once(device: str, section: str, quick: bool, problem: str, name: str) -> None:
    """One call of one contender, in a process of the pool."""
    import torch

    from bench import machine
    from bench.problems.sections import all_problems, small_problems

    machine.COMPILE_MODES[device] = "default"
    make = small_problems if quick else all_problems
    (chosen,) = [p for p in make(device, [section]) if p.name == problem]
    chosen.contender(name)()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


def parse_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", required=True, help="sections of the table, with commas")
    parser.add_argument("--match", type=re.compile, help="regular expression that a problem's name must have")
    parser.add_argument("--compile", type=re.compile, help="the same, for problems whose baseline is compiled too")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes")
    parser.add_argument("--quick", action="store_true", help="the table's --quick")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
