# SPDX-License-Identifier: MIT
"""Shared by several ops: checks of arguments, tensors as kernels take them, launches, Triton's building blocks."""
