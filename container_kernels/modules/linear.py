# SPDX-License-Identifier: MIT
"""Layers over the channels of each pixel: the projection and the MLP."""

from timm.layers import register_notrace_module
from torch import Tensor, nn

from ..ops.dispatch.autocast import activation_dtype
from ..ops.dispatch.backend import why_class_matters
from ..ops.fused_mlp import fused_mlp
from ..ops.projection import projection
from .fusible import reasons, why_active, why_not_plain
from .norm_folding import Affine
from .sharding import own_output


@register_notrace_module  # torch.fx keeps the layer whole
class ChannelLinear(nn.Linear):
    """A linear layer over the channels of an image, the same as a 1×1 convolution; parameters as in `nn.Linear`.

    Shape: (B, in_features, H, W) to (B, out_features, H, W); the result is in `torch.channels_last`, and nothing is
    copied when the input is too.
    """

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        # A weight that was quantized, say, knows what to do in `F.linear`.
        other_class = why_class_matters(self.weight, self.bias) is not None
        y = super().forward(x) if other_class else projection(x, self.weight, self.bias)
        return own_output(self, y.permute(0, 3, 1, 2))


@register_notrace_module
class ChannelMlp(nn.Module):
    """Two linear layers over channels with an activation between; dropout after each.

    Where the activation is the exact GELU and nothing is dropped, that is one operation: `fused_mlp`.

    Shape: (B, dim, H, W) to (B, dim, H, W).
    """

    def __init__(
        self,
        dim: int,
        hidden_dim: int,
        act_layer: type[nn.Module] = nn.GELU,
        drop: float = 0.0,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        self.fc1 = ChannelLinear(dim, hidden_dim, device=device, dtype=dtype)
        self.act = act_layer()
        self.drop1 = nn.Dropout(drop)
        self.fc2 = ChannelLinear(hidden_dim, dim, device=device, dtype=dtype)
        self.drop2 = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        if self.why_not_fusible() is None:
            return own_output(self, self.forward_fused(x))
        x = self.drop1(self.act(self.fc1(x)))
        return own_output(self, self.drop2(self.fc2(x)))

    def why_not_fusible(self) -> str | None:
        """None where `forward_fused` computes what the layers would, one after the other."""
        return self.why_projections_called() or reasons(act=why_not_exact_gelu(self.act))

    def why_projections_called(self) -> str | None:
        """The same, but for the activation."""
        return reasons(
            fc1=why_not_plain(self.fc1, ChannelLinear),
            drop1=why_active(self.drop1),
            fc2=why_not_plain(self.fc2, ChannelLinear),
            drop2=why_active(self.drop2),
        )

    def forward_fused(
        self, x: Tensor, norm: Affine | None = None, *, residual: bool = False, sample_scale: Tensor | None = None
    ) -> Tensor:
        """sample_scale · mlp(norm(x)) (+ x), where nothing speaks against it (`why_not_fusible`)."""
        x = x.permute(0, 2, 3, 1)
        w1, b1 = self.fc1.weight, self.fc1.bias
        if norm is not None:
            w1, b1 = norm.fold_into(w1, b1, activation_dtype(x))
        y = fused_mlp(x, w1, b1, self.fc2.weight, self.fc2.bias, residual=residual, sample_scale=sample_scale)
        return y.permute(0, 3, 1, 2)


def why_not_exact_gelu(act: nn.Module) -> str | None:
    """Why `act` is not the GELU that `fused_mlp` computes."""
    if reason := why_not_plain(act, nn.GELU):
        return reason
    return None if act.approximate == "none" else f"approximates by {act.approximate}"
