"""Tile shapes and launch parameters, as pure functions of the problem: the same choice every run."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class MixConfig:
    """One kernel launch: tiles of block_m queries by block_n keys."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True)
class ForwardConfig(MixConfig):
    whole_row: bool
    """True: block_n covers all keys (forward_row_kernel); False: online softmax over tiles of block_n."""


@dataclass(frozen=True)
class BackwardConfig:
    """Either `row`, one kernel for everything, or `query` and `key`, the two tiled kernels."""

    row: MixConfig | None = None
    query: MixConfig | None = None
    key: MixConfig | None = None


def padded(size: int) -> int:
    """The power of two that holds `size` and that a tensor core accepts."""
    return max(16, 1 << (size - 1).bit_length())


def forward_config(n: int, head_dim: int, dtype: torch.dtype) -> ForwardConfig:
    """Launch parameters of the forward."""
    row = padded(n)
    if row <= 256:
        return ForwardConfig(min(row, 64), row, 4, 1, True)
    return ForwardConfig(64, 64, 4, 2, False)


def backward_config(n: int, head_dim: int, dtype: torch.dtype) -> BackwardConfig:
    """Launch parameters of the backward."""
    row = padded(n)
    if row <= 256:
        return BackwardConfig(row=MixConfig(min(row, 32), row, 4, 1))
    return BackwardConfig(query=MixConfig(64, 64, 4, 2), key=MixConfig(64, 64, 4, 2))
