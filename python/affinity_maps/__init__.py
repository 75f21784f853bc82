# SPDX-License-Identifier: MIT
"""The parts of `affinity.py`: selection (of layers and queries), measure (the numbers), figure (the picture)."""
