# SPDX-License-Identifier: MIT
"""The paper's multi-head context aggregation as a layer: project, aggregate, project back."""

from collections.abc import Sequence
from typing import Literal

import torch
from timm.layers import register_notrace_module
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from ..ops.context_aggregation import context_aggregation, packed_context_aggregation
from ..ops.dispatch.autocast import activation_dtype
from ..ops.fold_norm import Moments
from ..ops.projection import projection, projection_with_moments
from .dense_affinity import resize_affinity
from .fusible import reasons, why_active, why_not_plain
from .initialization import init_local
from .linear import ChannelLinear
from .norm_folding import Affine
from .sharding import own_output
from .token_mlp import TokenMlp
from .validation import check_grid, check_image, check_probability, window_name, window_of

Static = Literal["local", "dense", "both"]
Mixing = Literal["gate", "free"]


@register_notrace_module  # torch.fx keeps the layer whole
class ContextAggregation(nn.Module):
    """Learnable mix of a dynamic and a static affinity over an image, in one kernel.

        V = X W1,   Y_m = (alpha · A_dyn_m(X) + beta · A_stat_m) V_m,   out = concat(Y_1 … Y_M) W2

    | setting                                  | what it is                                   |
    | ---------------------------------------- | -------------------------------------------- |
    | dynamic=True, static="local"             | CONTAINER: attention + depthwise convolution |
    | dynamic=True, static=None                | multi-head self-attention                    |
    | dynamic=False, static="local"            | depthwise convolution between two 1×1        |
    | dynamic=False, static="dense"            | (multi-head) MLP-Mixer token mixing          |
    | the same, hidden_tokens, no projections  | as released, a GELU between two affinities   |
    | dynamic=True, static="dense"             | CONTAINER-PAM                                |

    Args:
        dim: channels C, input and output.
        num_heads: heads M; head_dim is C / M.
        dynamic: with softmax attention.
        static: "local" (depthwise with bias), "dense" (a learned (M, N, N) matrix), "both"
            or None.
        kernel_size: side of the local window, or its height and width; odd, up to 11, fastest for 3, 5 and 7.
        grid_size: (H, W) of the input, needed by a dense affinity, which fixes it (`set_grid_size` changes it).
        mixing: used where both terms are present. "gate": one scalar w with alpha = σ(w), beta = 1 − σ(w), as in the
            released network; "free": alpha and beta are independent scalars, the paper's equation. Both start at
            alpha = beta = 1/2. With one term alone its factor is 1.
        qkv_bias: bias of the input projection.
        proj_drop: dropout after the output projection.
        num_prefix_tokens: tokens P before those of the grid, such as a class token. The input is then a column, an
            image one pixel wide: (B, C, P + H·W, 1). Not with a local affinity.
        hidden_tokens: makes a dense affinity that is alone an MLP over the tokens, with so many hidden: see `TokenMlp`.
        projections: W1 and W2. Without them the values are the input; not with attention.

    Shape: (B, C, H, W) to (B, C, H, W); fastest, and free of copies, in `torch.channels_last`.

    Raises:
        ValueError: an argument or the input's shape does not fit.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        dynamic: bool = True,
        static: Static | None = "local",
        kernel_size: int | tuple[int, int] = 5,
        grid_size: tuple[int, int] | None = None,
        mixing: Mixing = "gate",
        qkv_bias: bool = True,
        proj_drop: float = 0.0,
        num_prefix_tokens: int = 0,
        hidden_tokens: int | None = None,
        projections: bool = True,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        _check_arguments(dim, num_heads, dynamic, static, kernel_size, grid_size, mixing)
        _check_column_arguments(dynamic, static, num_prefix_tokens, hidden_tokens, projections)
        check_probability("proj_drop", proj_drop)
        factory = {"device": device, "dtype": dtype}
        self.dim = dim
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.dynamic = dynamic
        self.static = static
        self.grid_size = tuple(grid_size) if static in ("dense", "both") else None
        self.num_prefix_tokens = num_prefix_tokens
        self.mixing = mixing if dynamic and static else None

        # Query, key and value in that order, each split into heads in channel order; the value alone without attention.
        width = 3 * dim if dynamic else dim
        self.in_proj = ChannelLinear(dim, width, bias=qkv_bias, **factory) if projections else nn.Identity()
        self.local_weight = self.local_bias = self.affinity = self.token_mlp = None
        if static in ("local", "both"):
            self.local_weight = nn.Parameter(torch.empty(dim, *window_of(kernel_size), **factory))
            self.local_bias = nn.Parameter(torch.empty(dim, **factory))
        if static in ("dense", "both"):
            tokens = num_prefix_tokens + grid_size[0] * grid_size[1]
            if hidden_tokens is None:
                self.affinity = nn.Parameter(torch.empty(num_heads, tokens, tokens, **factory))
            else:
                self.token_mlp = TokenMlp(num_heads, tokens, hidden_tokens, **factory)
        if self.mixing == "gate":
            self.gate = nn.Parameter(torch.empty(1, **factory))
        elif self.mixing == "free":
            self.alpha = nn.Parameter(torch.empty(1, **factory))
            self.beta = nn.Parameter(torch.empty(1, **factory))
        self.out_proj = ChannelLinear(dim, dim, **factory) if projections else nn.Identity()
        self.proj_drop = nn.Dropout(proj_drop)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Projections and filters as PyTorch's layers start; dense affinities N(0, 0.02²); alpha = beta = 1/2."""
        for layer in (self.in_proj, self.out_proj, self.token_mlp):
            if layer is not None and not isinstance(layer, nn.Identity):
                layer.reset_parameters()
        if self.local_weight is not None:
            init_local(self.local_weight, self.local_bias)
        if self.affinity is not None:
            nn.init.trunc_normal_(self.affinity, std=0.02)
        if self.mixing == "gate":
            nn.init.zeros_(self.gate)
        elif self.mixing == "free":
            nn.init.constant_(self.alpha, 0.5)
            nn.init.constant_(self.beta, 0.5)

    def mixing_weights(self) -> tuple[Tensor | float, Tensor | float]:
        """alpha and beta of the paper's equation as they stand: (1,) tensors, or 1.0 where there is nothing to mix."""
        if self.mixing == "gate":
            alpha = self.gate.sigmoid()
            return alpha, 1 - alpha
        if self.mixing == "free":
            return self.alpha, self.beta
        return 1.0, 1.0

    @torch.no_grad()
    def set_grid_size(self, grid_size: tuple[int, int]) -> None:
        """Take images of another grid: a dense affinity is resized in place, by the rule of `resize_affinity`.

        Parameters are replaced by new ones: an optimizer has to be made anew. Without a dense affinity nothing changes.

        Raises:
            ValueError: not two positive integers.
            RuntimeError: what has to be replaced is parametrized.
        """
        _check_grid_size(grid_size)
        if self.grid_size is None:
            return
        if is_parametrized(self) or (self.token_mlp is not None and is_parametrized(self.token_mlp)):
            raise RuntimeError("set_grid_size: the layer is parametrized: remove the parametrizations before")
        new_grid = tuple(grid_size)
        if self.affinity is not None:
            resized = resize_affinity(self.affinity, self.grid_size, new_grid, self.num_prefix_tokens)
            self.affinity = nn.Parameter(resized, self.affinity.requires_grad)
        else:
            self.token_mlp.set_grid_size(self.grid_size, new_grid)
        self.grid_size = new_grid

    def forward(self, x: Tensor) -> Tensor:
        self._check(x)
        y = self._aggregate(self.in_proj(x).permute(0, 2, 3, 1))
        return own_output(self, self.proj_drop(self.out_proj(y.permute(0, 3, 1, 2))))

    def why_not_fusible(self) -> str | None:
        """None where `forward_fused` computes what the layers would, one after the other."""
        return reasons(
            in_proj=why_not_plain(self.in_proj, ChannelLinear),
            out_proj=why_not_plain(self.out_proj, ChannelLinear),
            proj_drop=why_active(self.proj_drop),
        )

    def forward_fused(
        self,
        x: Tensor,
        norm: Affine | None = None,
        *,
        residual: Tensor | None = None,
        sample_scale: Tensor | None = None,
        with_statistics: bool = False,
    ) -> tuple[Tensor, Moments | None]:
        """sample_scale · aggregation(norm(x)) (+ residual), and the statistics of that if wanted."""
        self._check(x)
        x = x.permute(0, 2, 3, 1)
        weight, bias = self.in_proj.weight, self.in_proj.bias
        if norm is not None:
            weight, bias = norm.fold_into(weight, bias, activation_dtype(x))
        y = self._aggregate(projection(x, weight, bias))
        residual = None if residual is None else residual.permute(0, 2, 3, 1)
        arguments = (y, self.out_proj.weight, self.out_proj.bias)
        if with_statistics:
            y, *sums = projection_with_moments(*arguments, residual=residual, sample_scale=sample_scale)
            return y.permute(0, 3, 1, 2), Moments(*sums, count=y[..., 0].numel())
        return projection(*arguments, residual=residual, sample_scale=sample_scale).permute(0, 3, 1, 2), None

    def _check(self, x: Tensor) -> None:
        check_image(x, self.dim)
        check_grid(x, self.grid_size, self.num_prefix_tokens)

    def _aggregate(self, packed: Tensor) -> Tensor:
        """Packed projections (B, H, W, 3C), or values (B, H, W, C), to (B, H, W, C), without copies."""
        batch, height, width, _ = packed.shape
        heads = (self.num_heads, self.head_dim)
        if self.token_mlp is not None:
            return self.token_mlp(packed.reshape(batch, height * width, *heads)).view(batch, height, width, self.dim)
        alpha, beta = self.mixing_weights()
        terms = {
            "alpha": alpha,
            "beta": beta,
            "local_weight": self.local_weight,
            "local_bias": self.local_bias,
            "affinity": self.affinity,
            "grid_size": (height, width),
        }
        if self.dynamic:
            y = packed_context_aggregation(packed.reshape(batch, height * width, 3, *heads), **terms)
        else:
            y = context_aggregation(None, None, packed.reshape(batch, height * width, *heads), **terms)
        return y.view(batch, height, width, self.dim)

    def extra_repr(self) -> str:
        parts = [f"num_heads={self.num_heads}", f"dynamic={self.dynamic}", f"static={self.static!r}"]
        if self.local_weight is not None:
            parts.append(f"kernel_size={window_name(self.local_weight.shape[1:])}")
        if self.grid_size is not None:
            parts.append(f"grid_size={self.grid_size}")
        if self.num_prefix_tokens:
            parts.append(f"num_prefix_tokens={self.num_prefix_tokens}")
        if self.mixing is not None:
            parts.append(f"mixing={self.mixing!r}")
        return ", ".join(parts)


def _check_arguments(dim, num_heads, dynamic, static, kernel_size, grid_size, mixing) -> None:
    if type(dim) is not int or dim < 1:
        raise ValueError(f"dim: expected a positive integer, got {dim!r}")
    if type(num_heads) is not int or num_heads < 1 or dim % num_heads:
        raise ValueError(f"num_heads: expected a divisor of dim = {dim}, got {num_heads!r}")
    if static not in ("local", "dense", "both", None):
        raise ValueError(f'static: expected "local", "dense", "both" or None, got {static!r}')
    if not dynamic and static is None:
        raise ValueError("static: expected a static affinity because dynamic=False, got None")
    if static in ("local", "both"):
        window_of(kernel_size)
    if static in ("dense", "both") and grid_size is None:
        raise ValueError(f"grid_size: expected (H, W) because static={static!r}, got None")
    if grid_size is not None:
        _check_grid_size(grid_size)
    if mixing not in ("gate", "free"):
        raise ValueError(f'mixing: expected "gate" or "free", got {mixing!r}')


def _check_column_arguments(dynamic, static, num_prefix_tokens, hidden_tokens, projections) -> None:
    if type(num_prefix_tokens) is not int or num_prefix_tokens < 0:
        raise ValueError(f"num_prefix_tokens: expected an integer of at least 0, got {num_prefix_tokens!r}")
    if num_prefix_tokens and static in ("local", "both"):
        raise ValueError(
            f"num_prefix_tokens: expected 0 because static={static!r} has a window on the grid, got {num_prefix_tokens}"
        )
    if hidden_tokens is not None:
        if type(hidden_tokens) is not int or hidden_tokens < 1:
            raise ValueError(f"hidden_tokens: expected a positive integer or None, got {hidden_tokens!r}")
        if dynamic or static != "dense" or num_prefix_tokens:
            raise ValueError(
                'hidden_tokens: expected None unless dynamic=False, static="dense" and num_prefix_tokens=0, '
                f"got {hidden_tokens} with {dynamic=}, {static=}, {num_prefix_tokens=}"
            )
    if dynamic and not projections:
        raise ValueError("projections: expected True because dynamic=True has queries and keys, got False")


def _check_grid_size(grid_size) -> None:
    is_pair = isinstance(grid_size, Sequence) and len(grid_size) == 2
    if not is_pair or not all(type(side) is int and side >= 1 for side in grid_size):
        raise ValueError(f"grid_size: expected (H, W), two integers of at least 1, got {grid_size!r}")
