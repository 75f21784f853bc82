# SPDX-License-Identifier: MIT
"""Initial values of filters and matrices that several layers hold."""

import math

from torch import Tensor, nn


def init_local(weight: Tensor, bias: Tensor | None) -> None:
    """Fill (C, kh, kw) filters and their (C,) bias as `nn.Conv2d` fills a depthwise convolution: U(±1/√(kh·kw))."""
    bound = 1 / math.sqrt(weight.shape[1] * weight.shape[2])
    nn.init.uniform_(weight, -bound, bound)
    if bias is not None:
        nn.init.uniform_(bias, -bound, bound)


def init_linear(weight: Tensor, bias: Tensor) -> None:
    """Fill (…, out, in) matrices and their (…, out) biases as `nn.Linear` is filled: U(±1/√in)."""
    bound = 1 / math.sqrt(weight.shape[-1])
    nn.init.uniform_(weight, -bound, bound)
    nn.init.uniform_(bias, -bound, bound)
