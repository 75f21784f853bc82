# SPDX-License-Identifier: MIT
"""The training engine, one purpose per file; what is trained is in `tasks`.

The command line: options (the flags).
The run: engine (the training loop), compute (device, dtype, layout), randomness (a function of seed, epoch and step,
never of history), distributed (ranks), interrupt (stopping all ranks at the same step).
On disk: run_folder, checkpoint (atomic files), run_state (a run as plain values), report (its records).
On the screen: progress, report, program (errors and exit codes).
"""
