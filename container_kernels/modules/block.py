# SPDX-License-Identifier: MIT
"""The CONTAINER block."""

from timm.layers import DropPath, register_notrace_module
from torch import Tensor, nn

from ..ops.fold_norm import Moments
from .context_aggregation import ContextAggregation, Mixing, Static
from .fused_block import FusedContainerBlock, refuse_weights_of_the_other_kind
from .fusible import sample_scale
from .fusion import Fusion, fusion_of
from .linear import ChannelMlp
from .local_aggregation import LocalAggregation
from .norm_folding import affine_of, needs_statistics
from .sharding import own_output
from .validation import check_probability


@register_notrace_module  # torch.fx keeps the block whole
class ContainerBlock(nn.Module):
    """Position embedding, context aggregation and MLP, each with a residual.

        x = x + depthwise3x3(x)
        x = x + drop_path(aggregation(norm1(x)))
        x = x + drop_path(mlp(norm2(x)))

    in five passes over the image: batch norms are folded into the projections after them, with statistics from the pass
    that wrote their input, and residuals and drop-path are part of the pass that ends a branch. A layer that was
    exchanged or hooked, or a norm of an unknown kind, is called as it is.

    Args:
        dim: channels C.
        num_heads: heads of the aggregation.
        mlp_ratio: width of the hidden layer over `dim`.
        dynamic, static, kernel_size, grid_size, mixing, qkv_bias, num_prefix_tokens, hidden_tokens, projections: see
            `ContextAggregation`.
        pos_embed: with the position embedding; without it the block is a Transformer's or MLP-Mixer's.
        drop: dropout after each projection.
        drop_path: probability of dropping a sample's residual branch (stochastic depth).
        norm_layer: called with `dim`, and with `device` or `dtype` where given; takes and gives (B, C, H, W).
        act_layer: activation of the MLP (GELU: the exact one, by erf).

    Shape: (B, C, H, W) to (B, C, H, W), any H and W unless a dense affinity fixes them; fastest in
    `torch.channels_last`.

    Raises:
        ValueError: an argument or the input's shape does not fit.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        *,
        dynamic: bool = True,
        static: Static | None = "local",
        kernel_size: int | tuple[int, int] = 5,
        grid_size: tuple[int, int] | None = None,
        mixing: Mixing = "gate",
        qkv_bias: bool = True,
        drop: float = 0.0,
        drop_path: float = 0.0,
        pos_embed: bool = True,
        num_prefix_tokens: int = 0,
        hidden_tokens: int | None = None,
        projections: bool = True,
        norm_layer: type[nn.Module] = nn.BatchNorm2d,
        act_layer: type[nn.Module] = nn.GELU,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        if mlp_ratio <= 0:
            raise ValueError(f"mlp_ratio: expected a positive number, got {mlp_ratio!r}")
        check_probability("drop_path", drop_path)
        # Only what was given: norms of other libraries need not know the arguments.
        factory = {name: value for name, value in (("device", device), ("dtype", dtype)) if value is not None}
        self.pos_embed = LocalAggregation(dim, 3, residual=True, **factory) if pos_embed else nn.Identity()
        self.norm1 = norm_layer(dim, **factory)
        self.aggregation = ContextAggregation(
            dim,
            num_heads,
            dynamic=dynamic,
            static=static,
            kernel_size=kernel_size,
            grid_size=grid_size,
            mixing=mixing,
            qkv_bias=qkv_bias,
            proj_drop=drop,
            num_prefix_tokens=num_prefix_tokens,
            hidden_tokens=hidden_tokens,
            projections=projections,
            **factory,
        )
        if pos_embed and num_prefix_tokens:
            raise ValueError("pos_embed: expected False because prefix tokens have no place on the grid, got True")
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.norm2 = norm_layer(dim, **factory)
        self.mlp = ChannelMlp(dim, int(dim * mlp_ratio), act_layer, drop, **factory)
        self.register_load_state_dict_pre_hook(refuse_weights_of_the_other_kind)

    def fuse(self) -> nn.Module:
        """The block for evaluation alone, faster and equal within rounding: see `FusedContainerBlock`.

        It takes over the layers that it cannot fold, so this block is used up: fuse a `copy.deepcopy` to keep one that
        can be trained. A block of a derived class is returned as it is, in evaluation mode.
        """
        return FusedContainerBlock(self) if type(self) is ContainerBlock else self.eval()

    def why_not_fused(self) -> str | None:
        """None where the block runs as its five passes, as it is now, in training or evaluation; else which layers are
        called on their own, and why."""
        return fusion_of(self).why_not_fused()

    def forward(self, x: Tensor) -> Tensor:
        fusion = fusion_of(self)
        x, statistics = self._embed_position(x, fusion)
        x, statistics = self._aggregate(x, statistics, fusion)
        return own_output(self, self._transform(x, statistics, fusion))

    def _embed_position(self, x: Tensor, fusion: Fusion) -> tuple[Tensor, Moments | None]:
        """The sum with the position embedding, and its statistics where norm1 takes them."""
        if needs_statistics(self.norm1) and fusion.norm1 is None:
            return self.pos_embed.with_statistics(x)
        return self.pos_embed(x), None

    def _aggregate(self, x: Tensor, statistics: Moments | None, fusion: Fusion) -> tuple[Tensor, Moments | None]:
        """x + drop_path(aggregation(norm1(x))), and its statistics where norm2 takes them."""
        if fusion.aggregation is not None:
            return x + self.drop_path(self.aggregation(self.norm1(x))), None
        branch, norm = (x, affine_of(self.norm1, statistics)) if fusion.norm1 is None else (self.norm1(x), None)
        return self.aggregation.forward_fused(
            branch,
            norm,
            residual=x,
            sample_scale=sample_scale(self.drop_path, x),
            with_statistics=needs_statistics(self.norm2),
        )

    def _transform(self, x: Tensor, statistics: Moments | None, fusion: Fusion) -> Tensor:
        """x + drop_path(mlp(norm2(x)))."""
        if fusion.norm2 is not None or fusion.mlp is not None:
            return x + self.drop_path(self.mlp(self.norm2(x)))
        norm = affine_of(self.norm2, statistics)
        return self.mlp.forward_fused(x, norm, residual=True, sample_scale=sample_scale(self.drop_path, x))
