# SPDX-License-Identifier: MIT
"""Context aggregation by CUDA C++: thin calls into the extension (csrc/context_aggregation/cuda)."""

from torch import Tensor

from ..._extension import DTYPE_CODES
from ..cuda_launch import cut_window, pad_window, place, workspace
from ..library import pointer


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    alpha: Tensor,
    local_weight: Tensor | None,
    local_bias: Tensor | None,
    affinity: None,
    height: int,
    width: int,
    scale: float,
    *,
    out: Tensor,
    logsumexp: Tensor,
) -> None:
    """Write alpha · softmax(scale q kᵀ) v + local(v) to `out` and the softmax's log2-sum-exp to `logsumexp`.

    Args:
        q, k, v: (B, N, M, D) of one dtype, any strides with a contiguous last dimension.
        alpha: (M,); local_weight: (M·D, kh, kw); local_bias: (M·D,): contiguous, float32; beta is folded into the
            last two, which may be None.
        affinity: None, there is no dense affinity here.
        height, width: of the grid of tokens; only read with a local_weight.
        out: (B, N, M, D), dtype of q; logsumexp: (B, M, N), float32.
    """
    _refuse_dense(affinity)
    local_weight, grid = _local_term(local_weight, height, width)
    module, device, stream = place(v)
    module.mix_forward(
        DTYPE_CODES[v.dtype], device, stream, v.shape, grid, scale,
        q.data_ptr(), q.stride(), k.data_ptr(), k.stride(), v.data_ptr(), v.stride(),
        alpha.data_ptr(), pointer(local_weight), pointer(local_bias),
        out.data_ptr(), out.stride(), logsumexp.data_ptr(),
    )  # fmt: skip


def backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    alpha: Tensor,
    local_weight: Tensor | None,
    affinity: None,
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
    _refuse_dense(affinity)
    local_weight, grid = _local_term(local_weight, height, width)
    _backward(
        grad_out, q, k, v, alpha, local_weight, logsumexp, grid, scale, grad_q, grad_k, grad_v, grad_alpha, None, None
    )


def backward_local(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    alpha: Tensor,
    local_weight: Tensor,
    logsumexp: Tensor,
    height: int,
    width: int,
    scale: float,
    *,
    grad_q: Tensor,
    grad_k: Tensor,
    grad_v: Tensor,
    grad_alpha: Tensor,
    grad_local_weight: Tensor,
    grad_local_bias: Tensor,
) -> None:
    """`backward`, and from the same reading the gradients for local_weight (M·D, kh, kw) and local_bias (M·D,)."""
    kh, kw = local_weight.shape[1:]
    padded, grid = _local_term(local_weight, height, width)
    is_compiled = padded is local_weight
    computed = grad_local_weight if is_compiled else grad_local_weight.new_empty(padded.shape)
    _backward(
        grad_out, q, k, v, alpha, padded, logsumexp, grid, scale,
        grad_q, grad_k, grad_v, grad_alpha, computed, grad_local_bias,
    )  # fmt: skip
    if not is_compiled:
        grad_local_weight.copy_(cut_window(computed, kh, kw))


def _backward(
    grad_out, q, k, v, alpha, local_weight, logsumexp, grid, scale,
    grad_q, grad_k, grad_v, grad_alpha, grad_local_weight, grad_local_bias,
) -> None:  # fmt: skip
    module, device, stream = place(v)
    code, with_local_gradient = DTYPE_CODES[v.dtype], grad_local_weight is not None
    scratch = workspace(v, module.mix_backward_workspace(code, device, v.shape, grid, with_local_gradient))
    module.mix_backward(
        code, device, stream, v.shape, grid, scale, grad_out.data_ptr(), grad_out.stride(),
        q.data_ptr(), q.stride(), k.data_ptr(), k.stride(), v.data_ptr(), v.stride(),
        alpha.data_ptr(), pointer(local_weight), logsumexp.data_ptr(),
        grad_q.data_ptr(), grad_q.stride(), grad_k.data_ptr(), grad_k.stride(), grad_v.data_ptr(), grad_v.stride(),
        grad_alpha.data_ptr(), pointer(grad_local_weight), pointer(grad_local_bias), scratch.data_ptr(),
    )  # fmt: skip


def _local_term(weight: Tensor | None, height: int, width: int) -> tuple[Tensor | None, tuple[int, int, int, int]]:
    """The weight as the kernels take it; the height and width of the grid and the window, zeros without a weight."""
    if weight is None:
        return None, (0, 0, 0, 0)
    weight = pad_window(weight)
    return weight, (height, width, *weight.shape[1:])


def _refuse_dense(affinity: Tensor | None) -> None:
    # The choice never gets here with one; a direct call of the operator can.
    if affinity is not None:
        raise ValueError(f"affinity: the CUDA kernels take None, got {tuple(affinity.shape)}")
