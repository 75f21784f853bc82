# SPDX-License-Identifier: MIT
"""Recorded programs: torch.export and torch.jit.trace."""

import torch


def is_recorded() -> bool:
    """Whether torch.export or torch.jit.trace records the call, for a program that runs without this package."""
    # What torch.compiler.is_exporting() returns; tracing that call, torch 2.11's compiler takes it for True always.
    return torch.compiler._is_exporting_flag or torch.jit.is_tracing()
