# SPDX-License-Identifier: MIT
"""The parts of `train.py` and `validate.py`, one purpose per file.

What the command line means: options (the flags), rules (which combinations contradict each other).
Images: sources (folders, tars, digits), subset (a part of them), memory (small ones stay decoded), data (their order,
transforms and batches), compute (device, dtype, layout).
The run: build (puts it together), engine (the training loop), evaluation (every image once), randomness (a function of
seed, epoch and step, never of history), distributed (ranks), interrupt (stopping all ranks at the same step).
On disk: run_folder, checkpoint (atomic files), saved_network (what one says of its network), state (a run as plain
values), report and curves (its records).
On the screen: progress, report, entry (errors and exit codes). judge evaluates a checkpoint.
"""
