# SPDX-License-Identifier: MIT
"""Multi-scale deformable attention as a layer: project, look at a few predicted points, project back."""

import math

import torch
from timm.layers import register_notrace_module
from torch import Tensor, nn

from ..ops.common.validation import check_device, check_tensor
from ..ops.deformable_attention import deformable_attention_from_offsets
from ..ops.deformable_attention.validation import level_sizes


@register_notrace_module  # torch.fx keeps the layer whole
class MultiScaleDeformableAttention(nn.Module):
    """Attention of queries to P points on each of L feature maps, which they predict beside reference points.

        x = query + query_pos,   V = value Wv
        offset, logit = x Wo, x Wa                                       (M, L, P, 2) and (M, L, P) for each query
        out = concat_m(Σ_{l,p} softmax(logit)[m,l,p] · bilinear(V_m of level l; reference[l] + offset[m,l,p])) W

    Zhu et al., "Deformable DETR", ICLR 2021, arXiv:2010.04159, equation 3. Parameters have the names and shapes of the
    released `MSDeformAttn`, of mmcv and of transformers, whose state dicts load. Offsets and logits may be in 16 bits,
    by autocast or by `.to(torch.bfloat16)`; keep `reference_points` in float32. Offsets then have 8 bits, which is
    enough in pixels, and for boxes that are less than some 30 pixels wide on the finest map.

    Args:
        embed_dim: channels C of queries, values and the result.
        num_heads: heads M, a divisor of C.
        num_levels: feature maps L.
        num_points: points P on each of them, for each head.

    Shape:
        query (B, Q, C) to (B, Q, C)
        reference_points (B, Q, L, 2): (x, y), 0 and 1 are the edges of the image; offsets are in pixels of their level.
            (B, Q, L, 4): (x, y, w, h), boxes; offsets are in halves of w and h, divided by P.
        value (B, S, C): the pixels of all levels one after the other, rows first.
        spatial_shapes: (H, W) of every level, Σ H·W = S; a tensor (L, 2) will do, but has to be read from the device.
        padding_mask (B, S): True where a pixel is padding; it counts as zero.
        query_pos (B, Q, C): added to the query.

    Raises:
        ValueError, TypeError: an argument or the shape of an input does not fit.
    """

    def __init__(
        self,
        embed_dim: int = 256,
        num_heads: int = 8,
        num_levels: int = 4,
        num_points: int = 4,
        *,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        numbers = {"embed_dim": embed_dim, "num_heads": num_heads, "num_levels": num_levels, "num_points": num_points}
        for name, number in numbers.items():
            if type(number) is not int or number < 1:
                raise ValueError(f"{name}: expected a positive integer, got {number!r}")
        if embed_dim % num_heads:
            raise ValueError(f"num_heads: expected a divisor of embed_dim = {embed_dim}, got {num_heads}")
        factory = {"device": device, "dtype": dtype}
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.num_levels = num_levels
        self.num_points = num_points

        points = num_heads * num_levels * num_points
        self.sampling_offsets = nn.Linear(embed_dim, 2 * points, **factory)
        self.attention_weights = nn.Linear(embed_dim, points, **factory)
        self.value_proj = nn.Linear(embed_dim, embed_dim, **factory)
        self.output_proj = nn.Linear(embed_dim, embed_dim, **factory)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """As in the paper: heads look in M directions, at P distances, with equal weights, whatever the query."""
        nn.init.zeros_(self.sampling_offsets.weight)
        angle = torch.arange(self.num_heads, dtype=torch.float32) * (2 * math.pi / self.num_heads)
        direction = torch.stack([angle.cos(), angle.sin()], -1)
        # On the square of side 2 around the reference, so that all of eight heads hit centres of pixels.
        direction = direction / direction.abs().amax(-1, keepdim=True)
        distance = torch.arange(1, self.num_points + 1, dtype=torch.float32)
        offsets = direction[:, None, None] * distance[:, None]
        self.sampling_offsets.bias.copy_(offsets.expand(-1, self.num_levels, -1, -1).flatten())
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(
        self,
        query: Tensor,
        reference_points: Tensor,
        value: Tensor,
        spatial_shapes,
        *,
        padding_mask: Tensor | None = None,
        query_pos: Tensor | None = None,
    ) -> Tensor:
        sizes = level_sizes(spatial_shapes)
        self._check(query, reference_points, value, sizes, padding_mask, query_pos)
        batch, queries, _ = query.shape
        points = (self.num_heads, self.num_levels, self.num_points)
        x = query if query_pos is None else query + query_pos
        values = self.value_proj(value)
        if padding_mask is not None:
            values = values.masked_fill(padding_mask[..., None], 0)
        out = deformable_attention_from_offsets(
            value=values.unflatten(-1, (self.num_heads, self.embed_dim // self.num_heads)),
            spatial_shapes=sizes,
            reference_points=reference_points,
            sampling_offsets=self.sampling_offsets(x).view(batch, queries, *points, 2),
            attention_logits=self.attention_weights(x).view(batch, queries, *points),
        )
        return self.output_proj(out.flatten(2))

    def _check(self, query, reference_points, value, sizes, padding_mask, query_pos) -> None:
        check_tensor("query", query, 3, "(B, Q, C)")
        check_tensor("value", value, 3, "(B, S, C)")
        batch, queries, channels = query.shape
        if channels != self.embed_dim:
            raise ValueError(f"query: expected (B, Q, C) with C = {self.embed_dim}, got {tuple(query.shape)}")
        if len(sizes) != self.num_levels:
            raise ValueError(f"spatial_shapes: expected num_levels = {self.num_levels} levels, got {sizes}")
        expected = (batch, sum(height * width for height, width in sizes), self.embed_dim)
        if tuple(value.shape) != expected:
            raise ValueError(
                f"value: expected (B, S, C) = {expected}, S the pixels of the levels {sizes}, got {tuple(value.shape)}"
            )
        check_tensor("reference_points", reference_points, 4, "(B, Q, L, 2 or 4)")
        if tuple(reference_points.shape) not in [(batch, queries, self.num_levels, size) for size in (2, 4)]:
            raise ValueError(
                f"reference_points: expected (B, Q, L, 2 or 4) = ({batch}, {queries}, {self.num_levels}, 2 or 4), got "
                f"{tuple(reference_points.shape)}"
            )
        if query_pos is not None:
            check_tensor("query_pos", query_pos, 3, "(B, Q, C)")
            if not all(size in (1, other) for size, other in zip(query_pos.shape, query.shape, strict=True)):
                raise ValueError(
                    f"query_pos: expected (B, Q, C) = {tuple(query.shape)}, as query has it, got "
                    f"{tuple(query_pos.shape)}"
                )
        if padding_mask is not None:
            if not isinstance(padding_mask, Tensor) or padding_mask.dtype != torch.bool:
                kind = padding_mask.dtype if isinstance(padding_mask, Tensor) else type(padding_mask).__name__
                raise TypeError(f"padding_mask: expected a tensor (B, S) of bool, True where padded, got {kind}")
            if tuple(padding_mask.shape) != expected[:2]:
                raise ValueError(f"padding_mask: expected (B, S) = {expected[:2]}, got {tuple(padding_mask.shape)}")
        for name, tensor in (("value", value), ("query_pos", query_pos), ("padding_mask", padding_mask)):
            if tensor is not None:
                check_device(name, tensor, "query", query)

    def extra_repr(self) -> str:
        return (
            f"{self.embed_dim}, num_heads={self.num_heads}, num_levels={self.num_levels}, num_points={self.num_points}"
        )
