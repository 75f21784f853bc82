# SPDX-License-Identifier: MIT
"""Checks of the arguments of `fused_mlp`."""

from torch import Tensor

from ..common.validation import check_bias, check_channels_last, check_matrix, check_sample_scale, check_tokens


def validate(x, w1, b1, w2, b2, residual, sample_scale) -> None:
    check_tokens("x", x)
    if isinstance(w1, Tensor) and w1.ndim == 2:
        check_channels_last(x, w1.shape[1], "w1")
    # A tensor, which `projection` takes by this name, must not count as true or false.
    if not isinstance(residual, bool):
        raise TypeError(f"residual: expected True (add x) or False, got {type(residual).__name__}")
    channels = x.shape[-1]
    check_matrix("w1", w1, (None, channels), "(hidden, C)", "x", x)
    hidden = w1.shape[0]
    if residual:
        check_matrix("w2", w2, (channels, hidden), "(C, hidden)", "x", x)
    else:
        check_matrix("w2", w2, (None, hidden), "(C_out, hidden)", "x", x)
    if b1 is not None:
        check_bias("b1", b1, hidden, "x", x, "(hidden,)")
    if b2 is not None:
        check_bias("b2", b2, w2.shape[0], "x", x, "(C_out,)")
    if sample_scale is not None:
        check_sample_scale("sample_scale", sample_scale, "x", x)
