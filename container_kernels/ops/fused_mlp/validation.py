# SPDX-License-Identifier: MIT
"""What `fused_mlp` accepts."""

from ..validation import check_bias, check_matrix, check_sample_scale, check_tokens


def validate(x, w1, b1, w2, b2, residual, sample_scale) -> None:
    check_tokens("x", x)
    channels = x.shape[-1]
    check_matrix("w1", w1, (None, channels), "(hidden, C)", "x", x)
    hidden = w1.shape[0]
    check_matrix("w2", w2, (channels if residual else None, hidden), "(C_out, hidden)", "x", x)
    for name, bias, size in (("b1", b1, hidden), ("b2", b2, w2.shape[0])):
        if bias is not None:
            check_bias(name, bias, size, "x", x)
    if sample_scale is not None:
        check_sample_scale("sample_scale", sample_scale, "x", x)
