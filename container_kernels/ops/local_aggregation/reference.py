"""The definition of local aggregation in plain PyTorch: any dtype, differentiable any number of times."""

import torch.nn.functional as F
from torch import Tensor

from ..library import accumulation_dtype


def local_aggregation_reference(x: Tensor, weight: Tensor, bias: Tensor | None, residual: bool) -> Tensor:
    """y[b,h,w,c] = Σ_{s,t} weight[c,s,t] · x[b, h+s−kh//2, w+t−kw//2, c] + bias[c]  (+ x[b,h,w,c])."""
    dtype = accumulation_dtype(x.dtype)
    channels, kh, kw = weight.shape
    image = x.to(dtype).permute(0, 3, 1, 2)
    out = F.conv2d(
        image,
        weight.to(dtype)[:, None],
        None if bias is None else bias.to(dtype),
        padding=(kh // 2, kw // 2),
        groups=channels,
    )
    if residual:
        out = out + image
    return out.permute(0, 2, 3, 1).to(x.dtype).contiguous()
