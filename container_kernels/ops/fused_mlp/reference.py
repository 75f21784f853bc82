# SPDX-License-Identifier: MIT
"""The definition of the MLP in plain PyTorch: any dtype, differentiable any number of times."""

import torch.nn.functional as F
from torch import Tensor

from ..common.tensors import converted, definition_dtype
from ..common.tokens import scaled_samples


def fused_mlp_reference(
    x: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    residual: bool,
    sample_scale: Tensor | None,
) -> Tensor:
    """y = sample_scale · (gelu(x w1ᵀ + b1) w2ᵀ + b2)  (+ x)."""
    dtype = definition_dtype(x.dtype)
    wide, w1, b1, w2, b2 = (converted(t, dtype) for t in (x, w1, b1, w2, b2))
    y = scaled_samples(F.linear(F.gelu(F.linear(wide, w1, b1)), w2, b2), sample_scale)
    return converted(y + wide if residual else y, x.dtype)
