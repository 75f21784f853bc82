# SPDX-License-Identifier: MIT
"""Context aggregation on the CPU: thin calls into the C++ extension (csrc/context_aggregation)."""

import torch
from torch import Tensor

from ... import _extension
from ..library import pointer


def _grid(height: int, width: int, local_weight: Tensor | None) -> tuple[int, int, int, int]:
    """The height and width of the grid and of the window; zeros without a local term."""
    return (0, 0, 0, 0) if local_weight is None else (height, width, *local_weight.shape[1:])


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    alpha: Tensor,
    local_weight: Tensor | None,
    local_bias: Tensor | None,
    affinity: Tensor | None,
    height: int,
    width: int,
    scale: float,
    *,
    out: Tensor,
    logsumexp: Tensor,
) -> None:
    """Write alpha · softmax(scale q kᵀ) v + static(v) to `out` and the softmax's log-sum-exp (natural) to `logsumexp`.

    Args:
        q, k, v: (B, N, M, D) of one dtype, any strides with a contiguous last dimension.
        alpha: (M,); local_weight: (M·D, kh, kw); local_bias: (M·D,); affinity: (M, N, N): contiguous, in the
            accumulation dtype; beta is folded into the last three, each of which may be None.
        height, width: of the grid of tokens; only read with a local_weight.
        out: (B, N, M, D), dtype of q; logsumexp: (B, M, N), accumulation dtype.
    """
    _extension.cpu.mix_forward(
        _extension.DTYPE_CODES[v.dtype], v.shape, _grid(height, width, local_weight), scale, torch.get_num_threads(),
        q.data_ptr(), q.stride(), k.data_ptr(), k.stride(), v.data_ptr(), v.stride(),
        alpha.data_ptr(), pointer(local_weight), pointer(local_bias), pointer(affinity),
        out.data_ptr(), out.stride(), logsumexp.data_ptr(),
    )  # fmt: skip


def backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    alpha: Tensor,
    local_weight: Tensor | None,
    affinity: Tensor | None,
    logsumexp: Tensor,
    height: int,
    width: int,
    scale: float,
    *,
    grad_q: Tensor,
    grad_k: Tensor,
    grad_v: Tensor,
    grad_alpha: Tensor,
) -> None:
    """Write the gradients of `forward` for q, k, v (B, N, M, D) and alpha (M,); arguments as there.

    Args:
        grad_out: (B, N, M, D), dtype of q, any strides with a contiguous last dimension.
        logsumexp: (B, M, N), as `forward` wrote it.
    """
    _extension.cpu.mix_backward(
        _extension.DTYPE_CODES[v.dtype], v.shape, _grid(height, width, local_weight), scale, torch.get_num_threads(),
        grad_out.data_ptr(), grad_out.stride(),
        q.data_ptr(), q.stride(), k.data_ptr(), k.stride(), v.data_ptr(), v.stride(),
        alpha.data_ptr(), pointer(local_weight), pointer(affinity), logsumexp.data_ptr(),
        grad_q.data_ptr(), grad_q.stride(), grad_k.data_ptr(), grad_k.stride(), grad_v.data_ptr(), grad_v.stride(),
        grad_alpha.data_ptr(),
    )  # fmt: skip
