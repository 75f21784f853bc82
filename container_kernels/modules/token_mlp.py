# SPDX-License-Identifier: MIT
"""The dense static affinity as MLP-Mixer has it: two matrices over the tokens and a GELU between."""

from functools import partial

import torch
from torch import Tensor, nn

from ..ops.fused_mlp import fused_mlp
from .dense_affinity import Grid, resize_tokens, resize_weights
from .initialization import init_linear

# What has tokens, the dimension that counts them, and how it gets to another grid: `rule(tensor, old grid, new grid)`.
RESIZING = {"w1": (2, resize_weights), "w2": (1, partial(resize_tokens, dim=1)), "b2": (1, resize_tokens)}


class TokenMlp(nn.Module):
    """Mixes the tokens of each head with an MLP of its own, the same for all channels of the head.

        Y_m = W2_m gelu(W1_m V_m + b1_m) + b2_m,   W1_m (T, N),   W2_m (N, T)

    Without the GELU, W2_m W1_m would be an affinity of rank T. One head is the token mixing of the released MLP-Mixer.

    Args:
        num_heads: heads M.
        tokens: tokens N.
        hidden_tokens: width T of the hidden layer.

    Shape: (B, N, M, D) to (B, N, M, D), contiguous.
    """

    def __init__(self, num_heads: int, tokens: int, hidden_tokens: int, device=None, dtype=None) -> None:
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        self.w1 = nn.Parameter(torch.empty(num_heads, hidden_tokens, tokens, **factory))
        self.b1 = nn.Parameter(torch.empty(num_heads, hidden_tokens, **factory))
        self.w2 = nn.Parameter(torch.empty(num_heads, tokens, hidden_tokens, **factory))
        self.b2 = nn.Parameter(torch.empty(num_heads, tokens, **factory))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Each head as two `nn.Linear` start."""
        init_linear(self.w1, self.b1)
        init_linear(self.w2, self.b2)

    def forward(self, v: Tensor) -> Tensor:
        heads = v.permute(2, 0, 3, 1).unbind()  # (B, D, N) each: tokens are what the MLP counts as channels
        mixed = [fused_mlp(x, *mlp) for x, *mlp in zip(heads, self.w1, self.b1, self.w2, self.b2, strict=True)]
        return torch.stack([y.transpose(1, 2) for y in mixed], dim=2)

    @torch.no_grad()
    def set_grid_size(self, old_grid: Grid, new_grid: Grid) -> None:
        """Mix the tokens of another grid, by the rule of `dense_affinity`."""
        for name, (_, resize) in RESIZING.items():
            parameter = getattr(self, name)
            setattr(self, name, nn.Parameter(resize(parameter, old_grid, new_grid), parameter.requires_grad))

    def extra_repr(self) -> str:
        heads, hidden_tokens, tokens = self.w1.shape
        return f"num_heads={heads}, tokens={tokens}, hidden_tokens={hidden_tokens}"
