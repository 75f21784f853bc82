# SPDX-License-Identifier: MIT
"""The parts of `compare.py`, one purpose per file; training itself is `training`'s.

contenders (the networks, of equal size), settings (the command line, the recipe), plan (which runs, in which order),
budget (how many epochs fit the time), session (trains the runs of a plan, or continues them), record (comparison.json),
cost (parameters and multiply-adds), results (means, deviations, paired differences), table and picture (what is shown).
"""
