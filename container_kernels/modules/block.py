# SPDX-License-Identifier: MIT
"""The CONTAINER block."""

from timm.layers import DropPath
from torch import Tensor, nn

from .context_aggregation import ContextAggregation, Mixing, Static
from .local_aggregation import LocalAggregation
from .pointwise import PointwiseMlp
from .validation import check_probability


class ContainerBlock(nn.Module):
    """Position embedding, context aggregation and MLP, each with a residual.

        x = x + depthwise3x3(x)
        x = x + drop_path(aggregation(norm1(x)))
        x = x + drop_path(mlp(norm2(x)))

    Args:
        dim: channels C.
        num_heads: heads of the aggregation.
        mlp_ratio: width of the hidden layer over `dim`.
        dynamic, static, kernel_size, grid_size, mixing, qkv_bias: see `ContextAggregation`.
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
        kernel_size: int = 5,
        grid_size: tuple[int, int] | None = None,
        mixing: Mixing = "gate",
        qkv_bias: bool = True,
        drop: float = 0.0,
        drop_path: float = 0.0,
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
        self.pos_embed = LocalAggregation(dim, 3, residual=True, **factory)
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
            **factory,
        )
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.norm2 = norm_layer(dim, **factory)
        self.mlp = PointwiseMlp(dim, int(dim * mlp_ratio), act_layer, drop, **factory)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pos_embed(x)
        x = x + self.drop_path(self.aggregation(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))
