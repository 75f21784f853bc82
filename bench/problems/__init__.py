# SPDX-License-Identifier: MIT
"""Benchmark problems: one file per op, networks, and the sections of the table that they make."""
