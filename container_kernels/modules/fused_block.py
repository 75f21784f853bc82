# SPDX-License-Identifier: MIT
"""The CONTAINER block for evaluation alone: `ContainerBlock.fuse()`.

What a block derives from its parameters in every call is computed once: norms are part of the projections after them,
x + depthwise(x) is one filter, alpha and beta are numbers, beta is multiplied into the static affinity. A fused block
whose layers are all known runs five operations, and with a local static affinity nothing else touches memory:

    local_aggregation    3×3 filters with the residual in their center tap
    projection           norm1 and the input projection
    context_aggregation  or local_aggregation, where there is no attention
    projection           the output projection, its residual
    fused_mlp            norm2 and the MLP, its residual

A layer that cannot be folded (a norm of an unknown kind or without running statistics, a layer that was exchanged or
hooked) is called where it was, and what surrounds it is fused.
"""

import torch
from timm.layers import register_notrace_module
from torch import Tensor, nn

from ..ops.common.tensors import accumulation_dtype, converted
from ..ops.context_aggregation import context_aggregation
from ..ops.fused_mlp import fused_mlp
from ..ops.local_aggregation import local_aggregation
from ..ops.projection import projection
from .context_aggregation import ContextAggregation
from .fusion import Fusion, fusion_after_fuse
from .linear import ChannelMlp
from .local_aggregation import LocalAggregation
from .norm_folding import affine_of
from .validation import check_grid, check_image

# What runs around a module's forward. Hooks of its state dict are left out: a fused block has another one.
_CALL_HOOKS = (
    "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs",
    "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called",
    "_backward_pre_hooks", "_backward_hooks", "_is_full_backward_hook",
)  # fmt: skip
# Every name in a fused module's state dict starts with it, and none of one that can be trained.
_MARK = "fused_"


class _Constants(nn.Module):
    """Parameters that are not trained, each in the dtype in which the operations want it.

    Matrices (C_out, C) have the dtype of the images and follow `.to(dtype)` as everywhere. All others are few numbers
    that the operations want in the accumulation dtype: in a network of bfloat16 or float16 they stay float32, so that
    no call converts them, and none is rounded.
    """

    def _freeze(self, name: str, tensor: Tensor | None) -> None:
        if tensor is not None:
            dtype = tensor.dtype if tensor.ndim == 2 else accumulation_dtype(tensor.dtype)
            copy = tensor.detach().to(dtype, copy=True, memory_format=torch.contiguous_format)
            tensor = nn.Parameter(copy, requires_grad=False)
        self.register_parameter(name, tensor)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={tuple(tensor.shape)}" for name, tensor in self.named_parameters(recurse=False))

    def _apply(self, fn, recurse=True):
        def converted(tensor: Tensor) -> Tensor:
            out = fn(tensor)
            dtype = accumulation_dtype(out.dtype)
            return out if tensor.ndim == 2 or out.dtype == dtype else tensor.to(out.device, dtype)

        if recurse:
            for child in self.children():
                child._apply(fn)
        return super()._apply(converted, recurse=False)


class ChannelAffine(_Constants):
    """x · scale + shift by channel: a norm with statistics that do not change, in training mode neither.

    Shape: (B, C, H, W) to (B, C, H, W).
    """

    def __init__(self, scale: Tensor, shift: Tensor) -> None:
        super().__init__()
        self._freeze("fused_scale", scale)
        self._freeze("fused_shift", shift)

    def forward(self, x: Tensor) -> Tensor:
        check_image(x, len(self.fused_scale))
        return converted(torch.addcmul(self.fused_shift.view(-1, 1, 1), x, self.fused_scale.view(-1, 1, 1)), x.dtype)


class _FusedLocal(_Constants):
    """`LocalAggregation` with its residual in the center of the filters."""

    def __init__(self, layer: LocalAggregation) -> None:
        super().__init__()
        weight = layer.weight.detach().to(accumulation_dtype(layer.weight.dtype), copy=True)
        if layer.residual:
            _, kh, kw = weight.shape
            weight[:, kh // 2, kw // 2] += 1
        self._freeze("weight", weight)
        self._freeze("bias", layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        check_image(x, len(self.weight))
        return local_aggregation(x.permute(0, 2, 3, 1), self.weight, self.bias).permute(0, 3, 1, 2)


class _FusedAggregation(_Constants):
    """x + aggregation(norm(x)), where the layer's projections are plain."""

    def __init__(self, layer: ContextAggregation, norm: nn.Module, fusion: Fusion) -> None:
        super().__init__()
        self.dim, self.num_heads, self.head_dim = layer.dim, layer.num_heads, layer.head_dim
        self.dynamic, self.grid_size, self.num_prefix_tokens = layer.dynamic, layer.grid_size, layer.num_prefix_tokens
        self.norm, in_weight, in_bias = _folded(norm, fusion.norm1, layer.in_proj)
        self._freeze("in_weight", in_weight)
        self._freeze("in_bias", in_bias)
        alpha, beta = layer.mixing_weights()
        for name in ("local_weight", "local_bias", "affinity"):
            static = getattr(layer, name)
            if static is not None:
                static = static.to(accumulation_dtype(static.dtype))
                static = static * (beta.view(-1, *[1] * (static.ndim - 1)) if isinstance(beta, Tensor) else beta)
            self._freeze(name, static)
        ones = in_bias.new_ones(self.num_heads, dtype=accumulation_dtype(in_bias.dtype))
        self._freeze("alpha", ones * alpha if self.dynamic else None)
        self._freeze("out_weight", layer.out_proj.weight)
        self._freeze("out_bias", layer.out_proj.bias)

    def forward(self, x: Tensor) -> Tensor:
        check_image(x, self.dim)
        check_grid(x, self.grid_size, self.num_prefix_tokens)
        residual = x.permute(0, 2, 3, 1)
        branch = residual if self.norm is None else self.norm(x).permute(0, 2, 3, 1)
        y = self._aggregate(projection(branch, self.in_weight, self.in_bias))
        return projection(y, self.out_weight, self.out_bias, residual=residual).permute(0, 3, 1, 2)

    def _aggregate(self, packed: Tensor) -> Tensor:
        """Packed projections (B, H, W, 3C), or values (B, H, W, C), to (B, H, W, C)."""
        if not self.dynamic and self.affinity is None:
            return local_aggregation(packed, self.local_weight, self.local_bias)
        batch, height, width, _ = packed.shape
        heads = packed.view(batch, height * width, 3 if self.dynamic else 1, self.num_heads, self.head_dim)
        q, k, v = heads.unbind(2) if self.dynamic else (None, None, heads[:, :, 0])
        y = context_aggregation(
            q,
            k,
            v,
            alpha=self.alpha if self.dynamic else 1.0,
            local_weight=self.local_weight,
            local_bias=self.local_bias,
            affinity=self.affinity,
            grid_size=(height, width),
        )
        return y.view(batch, height, width, self.dim)


class _FusedMlp(_Constants):
    """x + mlp(norm(x)), where the layer's projections are plain; another activation than the exact GELU is called."""

    def __init__(self, layer: ChannelMlp, norm: nn.Module, fusion: Fusion) -> None:
        super().__init__()
        self.norm, w1, b1 = _folded(norm, fusion.norm2, layer.fc1)
        self.act = None if fusion.act is None else layer.act
        for name, tensor in (("w1", w1), ("b1", b1), ("w2", layer.fc2.weight), ("b2", layer.fc2.bias)):
            self._freeze(name, tensor)

    def forward(self, x: Tensor) -> Tensor:
        check_image(x, len(self.w2))
        residual = x.permute(0, 2, 3, 1)
        branch = residual if self.norm is None else self.norm(x).permute(0, 2, 3, 1)
        if self.act is None and self.norm is None:
            y = fused_mlp(branch, self.w1, self.b1, self.w2, self.b2, residual=True)
        elif self.act is None:
            y = residual + fused_mlp(branch, self.w1, self.b1, self.w2, self.b2)
        else:
            hidden = self.act(projection(branch, self.w1, self.b1).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
            y = projection(hidden, self.w2, self.b2, residual=residual)
        return y.permute(0, 3, 1, 2)


class _CalledLayers(nn.Module):
    """x + drop_path(layer(norm(x))) by calling each."""

    def __init__(self, layer: nn.Module, norm: nn.Module, drop_path: nn.Module) -> None:
        super().__init__()
        self.norm, self.layer, self.drop_path = norm, layer, drop_path

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop_path(self.layer(self.norm(x)))


@register_notrace_module  # torch.fx keeps the block whole
class FusedContainerBlock(nn.Module):
    """A `ContainerBlock` in evaluation mode with its constants folded; made by `ContainerBlock.fuse()`.

    Equal to the block within rounding. Gradients reach its input, but it has nothing to train: its parameters do not
    require gradients, and it stays in evaluation mode when `train()` is called on the network around it.

    Its state dict has names of its own (all start with "fused_"). Weights of a block that is not fused do not load into
    it, nor the reverse, not even with strict=False: a `RuntimeError` says what to do.

    Args:
        block: it is used up: layers that cannot be folded move, and the hooks of its call.

    Shape: (B, C, H, W) to (B, C, H, W), as the block's.
    """

    @torch.no_grad()
    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        block.eval().requires_grad_(False)
        position, aggregation, mlp, drop_path = block.pos_embed, block.aggregation, block.mlp, block.drop_path
        self.fusion = fusion = fusion_after_fuse(block)
        is_local = fusion.pos_embed is None and isinstance(position, LocalAggregation)
        self.fused_position = _FusedLocal(position) if is_local else position
        if fusion.aggregation is None:
            self.fused_aggregation = _FusedAggregation(aggregation, block.norm1, fusion)
        else:
            self.fused_aggregation = _CalledLayers(aggregation, block.norm1, drop_path)
        if fusion.mlp is None:
            self.fused_mlp = _FusedMlp(mlp, block.norm2, fusion)
        else:
            self.fused_mlp = _CalledLayers(mlp, block.norm2, drop_path)
        for name in _CALL_HOOKS:
            setattr(self, name, getattr(block, name))
        self.eval()
        self.register_load_state_dict_pre_hook(refuse_weights_of_the_other_kind)

    def why_not_fused(self) -> str | None:
        """None where nothing but the five operations runs; else which layers are called, and why."""
        return self.fusion.why_not_fused()

    def forward(self, x: Tensor) -> Tensor:
        return self.fused_mlp(self.fused_aggregation(self.fused_position(x)))

    def train(self, mode: bool = True) -> "FusedContainerBlock":
        """Nothing changes: the block stays in evaluation mode, and so do the layers that it calls."""
        return super().train(False)


def refuse_weights_of_the_other_kind(module: nn.Module, state_dict: dict, prefix: str, *_) -> None:
    """`load_state_dict` pre-hook of a block or norm, fused or not.

    Raises:
        RuntimeError: the weights are of a fused module and `module` is not one, or the reverse.
    """
    fused = isinstance(module, (FusedContainerBlock, ChannelAffine))
    kinds = {name[len(prefix) :].startswith(_MARK) for name in state_dict if name.startswith(prefix)}
    if not kinds or fused in kinds:
        return
    name = prefix.removesuffix(".") or type(module).__name__
    if fused:
        raise RuntimeError(f"state_dict: {name} is fused, the weights are not: load them before fuse()")
    raise RuntimeError(
        f"state_dict: the weights are of a fused network, {name} is not fused: call fuse(), then load them"
    )


def _folded(norm: nn.Module, why_called: str | None, layer: nn.Linear) -> tuple[nn.Module | None, Tensor, Tensor]:
    """The call that a linear layer on the result of `norm` needs before it, and the layer's weight and bias then."""
    weight, bias = layer.weight, layer.bias
    if why_called is not None:
        return norm, weight, weight.new_zeros(len(weight)) if bias is None else bias
    return None, *affine_of(norm).fold_into(weight, bias, weight.dtype)
