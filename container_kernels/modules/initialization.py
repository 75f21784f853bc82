# SPDX-License-Identifier: MIT
"""Initial values of depthwise filters, shared by the layers that hold them."""

import math

from torch import Tensor, nn


def init_local(weight: Tensor, bias: Tensor | None) -> None:
    """Fill (C, kh, kw) filters and their (C,) bias as `nn.Conv2d` fills a depthwise convolution: U(±1/√(kh·kw))."""
    bound = 1 / math.sqrt(weight.shape[1] * weight.shape[2])
    nn.init.uniform_(weight, -bound, bound)
    if bias is not None:
        nn.init.uniform_(bias, -bound, bound)
