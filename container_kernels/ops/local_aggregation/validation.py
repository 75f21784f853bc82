# SPDX-License-Identifier: MIT
"""Checks of the arguments of `local_aggregation`."""

from torch import Tensor

from ..common.validation import check_bias, check_channels_last, check_tensor, check_window


def validate(x, weight, bias) -> None:
    check_tensor("x", x, 4, "(B, H, W, C)")
    channels = x.shape[-1]
    if isinstance(weight, Tensor) and weight.ndim == 3:
        check_channels_last(x, weight.shape[0], "weight")
    check_window("weight", weight, channels, "x", x)
    if bias is not None:
        check_bias("bias", bias, channels, "x", x)
