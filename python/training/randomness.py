# SPDX-License-Identifier: MIT
"""Random numbers that depend on where the run is, not on how it got there.

Before every sample and every step the generators are seeded from (seed, epoch, step, …). A resumed run needs no
saved generator states, may start in the middle of an epoch, and gives the same losses for any number of workers.
"""

from __future__ import annotations

import random

import numpy
import torch


def derive_seed(*counters: int) -> int:
    """Mix non-negative integers into one 32-bit seed; neighbouring counters give unrelated seeds."""
    return int(numpy.random.SeedSequence(counters).generate_state(1)[0])


def seed_host(seed: int) -> None:
    """Seed the generators that transforms on the CPU draw from (`random`, NumPy, torch's CPU generator)."""
    random.seed(seed)
    numpy.random.seed(seed)
    torch.default_generator.manual_seed(seed)


def seed_everything(seed: int) -> None:
    """`seed_host` and the generators of all accelerators (drop-path, dropout, random erasing draw from these)."""
    seed_host(seed)
    torch.manual_seed(seed)
