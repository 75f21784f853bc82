# SPDX-License-Identifier: MIT
"""Facts about tiles of products that the launch rules of several ops share."""

import torch

# A warp's load of 16 bytes per thread.
BYTES_PER_WARP = 512


def padded(size: int) -> int:
    """The power of two that holds `size` and that a tensor core accepts."""
    return max(16, 1 << (size - 1).bit_length())


def kind(dtype: torch.dtype, precision: str) -> str:
    """Kind of product: "half", "tf32" or "ieee", which alone has no tensor cores.

    Raises:
        KeyError: no kernel multiplies `dtype`.
    """
    return {torch.bfloat16: "half", torch.float16: "half", torch.float32: precision}[dtype]
