# SPDX-License-Identifier: MIT
"""The training engine, one purpose per file; it knows no task, and a task (`tasks`) gives it what `task` says.

The command line: options (the parser), shared_options (what several programs are told), option_checks (what
contradicts itself, what a resumed run may change).
The run: run (a task and what it is trained with), engine (the training loop), optimization (optimizer, learning rate),
compute (device, dtype, layout), batches (the order of the images, loaders), evaluation (every image once), randomness
(a function of seed, epoch and step, never of history), distributed (ranks), interrupt (stopping all ranks at the same
step).
On disk: run_folder, checkpoint (atomic files), run_state (a run as plain values), report (its records).
Images: image_decoding (a file as RGB), tar_index (files of a tar, read in place).
On the screen: progress, report, program (from checked options to the finished run; errors and exit codes).
"""
