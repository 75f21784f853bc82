# SPDX-License-Identifier: MIT
"""Context aggregation by CUDA C++: thin calls into the extension (csrc/context_aggregation/cuda)."""

from torch import Tensor

from ..._extension import DTYPE_CODES
from ..common.cuda_launch import cut_window, pad_window, place, workspace
from ..common.tensors import pointer
from .inputs import MixArguments, MixGradients


def forward(inputs: MixArguments, out: Tensor, logsumexp: Tensor) -> None:
    """Write the mix to `out` (B, N, M, D), dtype of v, and the softmax's log2-sum-exp to `logsumexp` (B, M, N)."""
    inputs = _compiled(inputs)
    q, k, v = inputs[:3]
    module, device, stream = place(v)
    module.context_aggregation_forward(
        DTYPE_CODES[v.dtype], device, stream, v.shape, inputs.window, inputs.scale,
        q.data_ptr(), q.stride(), k.data_ptr(), k.stride(), v.data_ptr(), v.stride(),
        inputs.alpha.data_ptr(), pointer(inputs.local_weight), pointer(inputs.local_bias),
        out.data_ptr(), out.stride(), logsumexp.data_ptr(),
    )  # fmt: skip


def backward(inputs: MixArguments, grad_out: Tensor, logsumexp: Tensor, grads: MixGradients) -> None:
    """Write the gradients of q, k, v and alpha, and from the same reading those of the local term, where asked for.

    Args:
        grad_out: (B, N, M, D), dtype of q, any strides with a contiguous last dimension.
        logsumexp: (B, M, N), as `forward` wrote it.
    """
    given, inputs = inputs, _compiled(inputs)
    grad_weight = grads.local_weight
    if grad_weight is not None and inputs.local_weight is not given.local_weight:
        grad_weight = grad_weight.new_empty(inputs.local_weight.shape)
    q, k, v = inputs[:3]
    module, device, stream = place(v)
    code = DTYPE_CODES[v.dtype]
    size = module.context_aggregation_backward_workspace(code, device, v.shape, inputs.window, grad_weight is not None)
    scratch = workspace(v, size)
    module.context_aggregation_backward(
        code, device, stream, v.shape, inputs.window, inputs.scale, grad_out.data_ptr(), grad_out.stride(),
        q.data_ptr(), q.stride(), k.data_ptr(), k.stride(), v.data_ptr(), v.stride(),
        inputs.alpha.data_ptr(), pointer(inputs.local_weight), logsumexp.data_ptr(),
        grads.q.data_ptr(), grads.q.stride(), grads.k.data_ptr(), grads.k.stride(),
        grads.v.data_ptr(), grads.v.stride(), grads.alpha.data_ptr(),
        pointer(grad_weight), pointer(grads.local_bias), scratch.data_ptr(),
    )  # fmt: skip
    if grad_weight is not grads.local_weight:
        grads.local_weight.copy_(cut_window(grad_weight, *given.local_weight.shape[1:]))


def _compiled(inputs: MixArguments) -> MixArguments:
    """The same call with a window that the kernels are compiled for."""
    # The choice never gets here with a dense affinity; a direct call of the operator can.
    if inputs.affinity is not None:
        raise ValueError(f"affinity: the CUDA kernels take None, got {tuple(inputs.affinity.shape)}")
    weight = inputs.local_weight
    return inputs if weight is None else inputs._replace(local_weight=pad_window(weight))
