# SPDX-License-Identifier: MIT
"""The definition of local aggregation in plain PyTorch: any dtype, differentiable any number of times."""

import torch.nn.functional as F
from torch import Tensor

from ..common.tensors import accumulation_dtype, converted
from ..statistics import sums_by_channel


def local_aggregation_reference(x: Tensor, weight: Tensor, bias: Tensor | None, residual: bool) -> Tensor:
    """y[b,h,w,c] = Σ_{s,t} weight[c,s,t] · x[b, h+s−kh//2, w+t−kw//2, c] + bias[c]  (+ x[b,h,w,c])."""
    dtype = accumulation_dtype(x.dtype)
    channels, kh, kw = weight.shape
    image, weight = converted(x, dtype).permute(0, 3, 1, 2), converted(weight, dtype)
    bias = x.new_zeros(channels, dtype=dtype) if bias is None else converted(bias, dtype)
    if image.numel():
        out = F.conv2d(image, weight[:, None], bias, padding=(kh // 2, kw // 2), groups=channels)
    else:
        # conv2d refuses an image without pixels; this is as empty, and gives every argument its zero gradient.
        out = image * weight.sum((1, 2)).view(-1, 1, 1) + bias.view(-1, 1, 1)
    if residual:
        out = out + image
    return converted(out.permute(0, 2, 3, 1), x.dtype).contiguous()


def local_aggregation_with_moments_reference(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """y as above, rounded to the dtype of x; of this y: Σ_{b,h,w} y and Σ_{b,h,w} (y − mean)², accumulation dtype."""
    out = local_aggregation_reference(x, weight, bias, residual)
    return out, *sums_by_channel(out)
