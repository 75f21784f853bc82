#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Drop-in: give a stock timm ViT the CONTAINER mix, keeping its weights and, at first, its function.

    python python/examples/vit_context_aggregation.py

Every attention layer becomes a `ContextAggregation` with the same projections and a 5×5 local affinity beside the
softmax. With free mixing, alpha = 1 and beta = 0, the network computes what it computed before; fine-tuning then finds
out how much locality it wants.
"""

import timm
import torch
from timm.layers import Attention
from torch import Tensor, nn

from container_kernels import ContextAggregation


class TokenAggregation(nn.Module):
    """`ContextAggregation` on the tokens (B, N, C) of a ViT without class token, N = grid height × width."""

    def __init__(self, attention: Attention, grid_size: tuple[int, int], **settings) -> None:
        super().__init__()
        dim = attention.qkv.in_features
        self.grid_size = grid_size
        self.aggregation = ContextAggregation(
            dim, attention.num_heads, mixing="free", qkv_bias=attention.qkv.bias is not None, **settings
        )
        # timm packs query, key and value in the same order.
        self.aggregation.in_proj.load_state_dict(attention.qkv.state_dict())
        self.aggregation.out_proj.load_state_dict(attention.proj.state_dict())
        nn.init.ones_(self.aggregation.alpha)
        nn.init.zeros_(self.aggregation.beta)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        if attn_mask is not None or is_causal:
            raise ValueError("attn_mask, is_causal: expected None and False, context aggregation has no masks")
        image = x.transpose(1, 2).unflatten(2, self.grid_size)  # a channels_last view
        return self.aggregation(image).flatten(2).transpose(1, 2)


def use_context_aggregation(vit: nn.Module, **settings) -> nn.Module:
    """Replace every attention layer of a timm VisionTransformer, in place; returns the network.

    Args:
        vit: a `timm` VisionTransformer without class token (`class_token=False, global_pool="avg"`).
        settings: passed to `ContextAggregation`, e.g. `kernel_size=3`.

    Raises:
        ValueError: the network has prefix tokens, which have no place on the grid.
    """
    if vit.num_prefix_tokens:
        raise ValueError(f"vit: expected no prefix tokens (class_token=False), got {vit.num_prefix_tokens}")
    for block in vit.blocks:
        block.attn = TokenAggregation(block.attn, vit.patch_embed.grid_size, **settings)
    return vit


def main() -> None:
    torch.manual_seed(0)
    vit = timm.create_model("vit_tiny_patch16_224", class_token=False, global_pool="avg", num_classes=10).eval()
    image = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        before = vit(image)
        use_context_aggregation(vit)
        after = vit(image)
    print(f"largest change of a logit after the swap: {(after - before).abs().max():.1e}")
    vit.train()
    vit(image).square().sum().backward()
    betas = [block.attn.aggregation.beta.grad.item() for block in vit.blocks]
    print("gradient of beta by block:", " ".join(f"{beta:+.2e}" for beta in betas))


if __name__ == "__main__":
    main()
