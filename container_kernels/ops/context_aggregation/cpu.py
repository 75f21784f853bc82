# SPDX-License-Identifier: MIT
"""Context aggregation on the CPU: thin calls into the C++ extension (csrc/context_aggregation)."""

import torch
from torch import Tensor

from ... import _extension
from ..common.tensors import pointer
from .inputs import MixArguments, MixGradients


def forward(inputs: MixArguments, out: Tensor, logsumexp: Tensor) -> None:
    """Write the mix to `out` (B, N, M, D), dtype of v, and the softmax's log-sum-exp to `logsumexp` (B, M, N)."""
    q, k, v = inputs[:3]
    _extension.cpu.context_aggregation_forward(
        _extension.DTYPE_CODES[v.dtype], v.shape, inputs.window, inputs.scale, torch.get_num_threads(),
        q.data_ptr(), q.stride(), k.data_ptr(), k.stride(), v.data_ptr(), v.stride(),
        inputs.alpha.data_ptr(), pointer(inputs.local_weight), pointer(inputs.local_bias), pointer(inputs.affinity),
        out.data_ptr(), out.stride(), logsumexp.data_ptr(),
    )  # fmt: skip


def backward(inputs: MixArguments, grad_out: Tensor, logsumexp: Tensor, grads: MixGradients) -> None:
    """Write the gradients of q, k, v and alpha.

    Args:
        grad_out: (B, N, M, D), dtype of q, any strides with a contiguous last dimension.
        logsumexp: (B, M, N), as `forward` wrote it.
    """
    q, k, v = inputs[:3]
    _extension.cpu.context_aggregation_backward(
        _extension.DTYPE_CODES[v.dtype], v.shape, inputs.window, inputs.scale, torch.get_num_threads(),
        grad_out.data_ptr(), grad_out.stride(),
        q.data_ptr(), q.stride(), k.data_ptr(), k.stride(), v.data_ptr(), v.stride(),
        inputs.alpha.data_ptr(), pointer(inputs.local_weight), pointer(inputs.affinity), logsumexp.data_ptr(),
        grads.q.data_ptr(), grads.q.stride(), grads.k.data_ptr(), grads.k.stride(),
        grads.v.data_ptr(), grads.v.stride(), grads.alpha.data_ptr(),
    )  # fmt: skip
