# SPDX-License-Identifier: MIT
"""Tokens that kernels read 16 bytes at a time: what does not start at multiples of 16 bytes is copied to where it does.

A head_dim of 33, say, costs a pass over each tensor; elements loaded one by one would cost registers, of which such
kernels have none left: they spilled on every GPU.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..inputs import MixArguments
from .config import MAX_TOKENS_PER_TILE


def readable(tensor: Tensor) -> Tensor:
    """The (B, N, M, D) tensor, or a copy of it where kernels cannot read its tokens 16 bytes at a time or reach those
    of one tile by 32-bit offsets."""
    unit = 16 // tensor.element_size()
    aligned = tensor.data_ptr() % 16 == 0 and all(
        stride % unit == 0 for size, stride in zip(tensor.shape[:3], tensor.stride(), strict=False) if size > 1
    )
    near = tensor.stride(1) * MAX_TOKENS_PER_TILE < 2**31
    return tensor if aligned and near else tensor.clone(memory_format=torch.contiguous_format)


def spare_channels(tensor: Tensor) -> int:
    """Channels that a head lacks to a multiple of 16 bytes."""
    return -tensor.shape[-1] % (16 // tensor.element_size())


def widen(tensor: Tensor | None, num_heads: int, spare: int) -> Tensor | None:
    """A tensor with heads of `spare` more channels, of zeros: (B, N, M, D), or with M · D channels in front."""
    if tensor is None:
        return None
    if tensor.dim() == 4:
        return F.pad(tensor, (0, spare))
    by_head = tensor.unflatten(0, (num_heads, -1))
    return F.pad(by_head, (0, 0) * (by_head.dim() - 2) + (0, spare)).flatten(0, 1)


def with_spare_channels(inputs: MixArguments, spare: int) -> MixArguments:
    """The same call with heads of `spare` more channels, of zeros."""
    heads = inputs.v.shape[2]
    names = ("q", "k", "v", "local_weight", "local_bias")
    return inputs._replace(**{name: widen(getattr(inputs, name), heads, spare) for name in names})
