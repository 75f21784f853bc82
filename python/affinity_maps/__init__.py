# SPDX-License-Identifier: MIT
"""The parts of `affinity.py`: options (the command line), files (what is wrong with them), selection (of layers and
queries), measure (the numbers), description (the numbers in words), figure (the picture)."""
