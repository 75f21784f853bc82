# SPDX-License-Identifier: MIT
"""What several ops share: checks of arguments, tensors as kernels take them, launches, Triton's building blocks."""
