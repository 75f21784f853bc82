# SPDX-License-Identifier: MIT
"""Local aggregation (depthwise) by CUDA C++: thin calls into the extension (csrc/local_aggregation/cuda)."""

from torch import Tensor

from ..._extension import DTYPE_CODES
from ..common.cuda_launch import compiled_window, cut_window, pad_window, place, workspace
from ..common.tensors import pointer


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, *, out: Tensor) -> None:
    """Write the depthwise cross-correlation of `x` with zero padding to `out`.

    Args:
        x: (B, H, W, C), any strides with a contiguous last dimension.
        weight: (C, kh, kw), odd, at most `MAX_WINDOW`; bias: (C,) or None: contiguous, accumulation dtype.
        out: (B, H, W, C), dtype of x.
    """
    _forward(x, weight, bias, out, None, None)


def forward_with_moments(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    out: Tensor,
    channel_sum: Tensor,
    channel_m2: Tensor,
) -> None:
    """`forward`, and over all pixels the sum of `out` and of its squared deviations (C,), accumulation dtype."""
    _forward(x, weight, bias, out, channel_sum, channel_m2)


def backward_weight(grad_out: Tensor, x: Tensor, *, grad_weight: Tensor, grad_bias: Tensor) -> None:
    """Write the gradients for weight (C, kh, kw) and bias (C,), in the accumulation dtype.

    Args:
        grad_out, x: (B, H, W, C) of one dtype, any strides with a contiguous last dimension.
    """
    kh, kw = grad_weight.shape[1:]
    size = compiled_window(kh, kw)
    is_compiled = (kh, kw) == (size, size)
    computed = grad_weight if is_compiled else grad_weight.new_empty(grad_weight.shape[0], size, size)
    module, device, stream = place(x)
    code = DTYPE_CODES[x.dtype]
    scratch = workspace(x, module.local_aggregation_backward_weight_workspace(code, device, x.shape, (size, size)))
    module.local_aggregation_backward_weight(
        code, device, stream, x.shape, (size, size), grad_out.data_ptr(), grad_out.stride(),
        x.data_ptr(), x.stride(), computed.data_ptr(), grad_bias.data_ptr(), scratch.data_ptr(),
    )  # fmt: skip
    if not is_compiled:
        grad_weight.copy_(cut_window(computed, kh, kw))


def _forward(x, weight, bias, out, channel_sum, channel_m2) -> None:
    weight = pad_window(weight)
    module, device, stream = place(x)
    code, window = DTYPE_CODES[x.dtype], weight.shape[1:]
    statistics = channel_sum is not None
    scratch = workspace(x, module.local_aggregation_forward_workspace(code, device, x.shape, window, statistics))
    module.local_aggregation_forward(
        code, device, stream, x.shape, window, x.data_ptr(), x.stride(), weight.data_ptr(), pointer(bias),
        out.data_ptr(), out.stride(), pointer(channel_sum), pointer(channel_m2), scratch.data_ptr(),
    )  # fmt: skip
