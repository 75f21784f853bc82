# SPDX-License-Identifier: MIT
"""The static local affinity as a layer: a depthwise convolution."""

import torch
from timm.layers import register_notrace_module
from torch import Tensor, nn

from ..ops.fold_norm import Moments
from ..ops.local_aggregation import local_aggregation, local_aggregation_with_moments
from .initialization import init_local
from .sharding import own_output
from .validation import check_image, window_name, window_of


@register_notrace_module  # torch.fx keeps the layer whole
class LocalAggregation(nn.Module):
    """Depthwise convolution with zero padding; `residual=True` adds the input.

    kernel_size is the side of the window, or its height and width: odd, up to 11, fastest for 3, 5 and 7.

    Equivalent to `nn.Conv2d(dim, dim, kernel_size, padding="same", groups=dim)` (+ x); the weight is
    (C, kh, kw), its (C, 1, kh, kw) without the middle dimension.

    Shape: (B, C, H, W) to (B, C, H, W); the result is in `torch.channels_last`, fastest when the input is too.

    Raises:
        ValueError: an even kernel_size or one above 11, or an input of another number of channels.
    """

    def __init__(
        self,
        dim: int,
        kernel_size: int | tuple[int, int] = 5,
        *,
        residual: bool = False,
        bias: bool = True,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        window = window_of(kernel_size)
        factory = {"device": device, "dtype": dtype}
        self.residual = residual
        self.weight = nn.Parameter(torch.empty(dim, *window, **factory))
        self.bias = nn.Parameter(torch.empty(dim, **factory)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        init_local(self.weight, self.bias)

    def forward(self, x: Tensor) -> Tensor:
        check_image(x, self.weight.shape[0])
        y = local_aggregation(x.permute(0, 2, 3, 1), self.weight, self.bias, residual=self.residual)
        return own_output(self, y.permute(0, 3, 1, 2))

    def with_statistics(self, x: Tensor) -> tuple[Tensor, Moments]:
        """The same, and from the same pass the statistics of the result."""
        check_image(x, self.weight.shape[0])
        y, *sums = local_aggregation_with_moments(x.permute(0, 2, 3, 1), self.weight, self.bias, residual=self.residual)
        return y.permute(0, 3, 1, 2), Moments(*sums, count=y[..., 0].numel())

    def extra_repr(self) -> str:
        dim, *window = self.weight.shape
        return f"{dim}, kernel_size={window_name(window)}, residual={self.residual}, bias={self.bias is not None}"
