# SPDX-License-Identifier: MIT
"""Benchmarks and the GPU check. Programs are modules, run from the checkout's root: `python -m bench.table`."""

from pathlib import Path

# Of the checkout.
ROOT = Path(__file__).resolve().parents[1]
