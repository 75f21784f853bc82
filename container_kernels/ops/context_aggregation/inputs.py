# SPDX-License-Identifier: MIT
"""One call of the mix: what its operators take and its backends are given."""

from typing import NamedTuple

from torch import Tensor

from ..common.tensors import contiguous, rows_contiguous


class MixArguments(NamedTuple):
    """alpha · softmax(scale q kᵀ) v + static(v), with beta folded into the static parameters.

    The fields, in this order, are the parameters of the operators (`schema`): tensors, then numbers.

    q, k, v: (B, N, M, D) of one dtype, any strides with a contiguous last dimension.
    alpha: (M,); local_weight: (M·D, kh, kw); local_bias: (M·D,); affinity: (M, N, N): contiguous, in the accumulation
        dtype; each but alpha may be None.
    height, width: of the grid of tokens; only read with a local_weight.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    alpha: Tensor
    local_weight: Tensor | None
    local_bias: Tensor | None
    affinity: Tensor | None
    height: int
    width: int
    scale: float

    @classmethod
    def of(cls, arguments: tuple, packed: bool) -> "MixArguments":
        """From an operator's arguments; `packed`: the first is a projection (B, N, 3, M, D) for q, k and v."""
        return cls(*arguments[0].unbind(2), *arguments[1:]) if packed else cls(*arguments)

    def readable(self) -> "MixArguments":
        """With the strides that kernels require."""
        q, k, v = map(rows_contiguous, self[:3])
        parameters = (contiguous(t) if isinstance(t, Tensor) else t for t in self[3:])
        return MixArguments(q, k, v, *parameters)

    @property
    def window(self) -> tuple[int, int, int, int]:
        """Height and width of the grid and of the window; zeros without a local term."""
        return (0, 0, 0, 0) if self.local_weight is None else (self.height, self.width, *self.local_weight.shape[1:])


class MixGradients(NamedTuple):
    """What a backward pass writes.

    q, k, v: (B, N, M, D), which share their strides; alpha: (M,); local_weight: (M·D, kh, kw) and local_bias: (M·D,),
        or None where the local term's gradients are not asked for.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    alpha: Tensor
    local_weight: Tensor | None = None
    local_bias: Tensor | None = None
