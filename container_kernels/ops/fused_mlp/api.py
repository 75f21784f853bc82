# SPDX-License-Identifier: MIT
"""`fused_mlp`: two linear layers with a GELU between, whose hidden layer is not kept for the backward."""

import torch
from torch import Tensor

from ..common.tensors import converted
from ..common.tokens import as_tokens, zeros_for_bias
from ..dispatch import autocast
from ..dispatch.backend import choose
from .autograd import fused_mlp_forward
from .backends import COMPILED, why_not
from .inputs import MlpArguments
from .reference import fused_mlp_reference
from .validation import validate


def fused_mlp(
    x: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    *,
    residual: bool = False,
    sample_scale: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """The MLP of a transformer or CONTAINER block, channels last, with the erf GELU.

        y[b] = sample_scale[b] · (gelu(x[b] w1ᵀ + b1) w2ᵀ + b2)  (+ x[b] with residual)

    The hidden layer, `hidden / C` times as wide as x, is not kept for the backward, which computes it again; where C is
    small it never leaves the chip. Sums and the GELU are in float32 (float64 for float64); a kernel may round the
    hidden layer to the dtype of `x`, as two linear layers would. "reference" rounds y alone, and keeps what autograd
    keeps.

    For bfloat16 and float16 "triton" on a GPU takes the normal distribution function Φ from the hardware's tanh: it is
    off by at most 6e-4, gelu by 2e-3 and, over normal inputs of deviation 1, by 3e-4 in root mean square (bfloat16
    rounds gelu by 1.1e-3). The negative tail keeps fewer digits than the dtype has: below -4.3 it is 0.

    Gradients for x, w1, b1, w2 and b2, to any order; beyond the first in plain PyTorch.

    Args:
        x: (B, …, C), channels last: (B, H, W, C) of an image, (B, N, C) of tokens; float32, bfloat16, float16 or
            float64.
        w1, w2: (hidden, C) and (C_out, hidden), as in `nn.Linear`; any floating dtype, used in that of `x`.
        b1, b2: (hidden,) and (C_out,), or None; any floating dtype, used in the accumulation dtype.
        residual: add `x`; then C_out must be C.
        sample_scale: (B,), a factor of each sample's branch: stochastic depth's mask. Without gradient.
        backend: "triton", "cpu", "reference", or None for the fastest that serves.

    Returns:
        (B, …, C_out), contiguous, dtype of `x` (of autocast, when that is on).

    Raises:
        ValueError: a shape or device does not fit.
        TypeError: an argument is not a floating-point tensor, or `residual` not a bool.
        RuntimeError: the backend asked for cannot serve this call; the message says why.
    """
    validate(x, w1, b1, w2, b2, residual, sample_scale)
    if autocast.is_active(x):
        device_type = x.device.type
        with torch.autocast(device_type, enabled=False):
            x = autocast.cast(x, device_type)
            return fused_mlp(x, w1, b1, w2, b2, residual=residual, sample_scale=sample_scale, backend=backend)
    chosen = choose("fused_mlp", backend, why_not, (x, w1, b1, w2, b2, sample_scale), compiled=COMPILED)
    w1, w2 = converted(w1, x.dtype), converted(w2, x.dtype)
    if chosen == "reference":
        return fused_mlp_reference(x, w1, b1, w2, b2, residual, sample_scale)
    b1, b2 = zeros_for_bias(b1, x, w1.shape[0]), zeros_for_bias(b2, x, w2.shape[0])
    sample_scale = None if sample_scale is None else sample_scale.to(b1.dtype)
    out = fused_mlp_forward(chosen, MlpArguments(as_tokens(x), w1, b1, w2, b2, sample_scale, residual))
    return out.view(*x.shape[:-1], w2.shape[0])
