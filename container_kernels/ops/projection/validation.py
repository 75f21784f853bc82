# SPDX-License-Identifier: MIT
"""Checks of the arguments of `projection`."""

from torch import Tensor

from ..common.validation import (
    check_bias,
    check_channels_last,
    check_device,
    check_matrix,
    check_sample_scale,
    check_shape,
    check_tensor,
    check_tokens,
)


def validate(x, weight, bias, residual, sample_scale) -> None:
    check_tokens("x", x)
    if isinstance(weight, Tensor) and weight.ndim == 2:
        check_channels_last(x, weight.shape[1], "weight")
    check_matrix("weight", weight, (None, x.shape[-1]), "(C_out, C)", "x", x)
    out_channels = weight.shape[0]
    if bias is not None:
        check_bias("bias", bias, out_channels, "x", x, "(C_out,)")
    if residual is not None:
        check_tensor("residual", residual, x.ndim, "(B, …, C_out)")
        check_shape("residual", residual, (*x.shape[:-1], out_channels), "(B, …, C_out)")
        check_device("residual", residual, "x", x)
    if sample_scale is not None:
        check_sample_scale("sample_scale", sample_scale, "x", x)
