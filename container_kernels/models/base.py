# SPDX-License-Identifier: MIT
"""Base of all networks, whatever their layout: blocks in a row, one final norm, loading, fusing."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from timm.layers import LayerNorm2d, register_notrace_module
from timm.models import checkpoint
from timm.utils import reparameterize_model
from torch import Tensor, nn

from ..modules import ContextAggregation
from ..modules.dense_affinity import Grid
from ..modules.fused_block import ChannelAffine
from ..modules.norm_folding import affine_of, why_not_foldable
from ..modules.sharding import own_output
from .checkpoint import refuse_other_norm, shortened, translate_names
from .explanation import explain_blocks, explanation

try:
    from timm.models._input import update_model_input_size
except ImportError:  # before 1.0.31 timm kept no record of the size a model has come to take

    def update_model_input_size(model: nn.Module, img_size: Grid) -> None: ...


Self = TypeVar("Self", bound="Network")


@register_notrace_module  # torch.fx keeps the layer whole
class PatchEmbed(nn.Module):
    """Non-overlapping patches to tokens: convolution with kernel = stride, then, if wanted, LayerNorm over channels.

    Images of any size, or, where something in the network belongs to one, of `fixed_size` alone.
    """

    def __init__(
        self,
        in_chans: int,
        dim: int,
        patch_size: int | Grid,
        *,
        norm: bool = True,
        fixed_size: Grid | None = None,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        self.fixed_size = fixed_size
        # Not read from the convolution, which an adapter may wrap.
        self.patch_size = as_size("patch_size", patch_size)
        self.proj = nn.Conv2d(in_chans, dim, patch_size, patch_size, device=device, dtype=dtype)
        self.norm = LayerNorm2d(dim, eps=1e-5, device=device, dtype=dtype) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        (rows, columns), (height, width) = self.patch_size, x.shape[-2:]
        if self.fixed_size is not None and (height, width) != self.fixed_size:
            raise ValueError(
                f"x: expected {self.fixed_size[0]}×{self.fixed_size[1]} pixels, got {height}×{width}: a position "
                "embedding or dense affinity belongs to one size of image, which set_input_size() changes"
            )
        if height < rows or width < columns:
            raise ValueError(f"x: expected at least {rows}×{columns} pixels to embed, got {height}×{width}")
        return own_output(self, self.norm(self.proj(x)))


class Blocks(nn.Sequential):
    """Blocks one after the other; with `grad_checkpointing`, the backward pass recomputes each from its input."""

    grad_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        for block in self:
            x = self.call(block, x)
        return x

    def call(self, block: nn.Module, x: Tensor) -> Tensor:
        """`block(x)`, for callers that want what is between the blocks."""
        if self.grad_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, x)
        return block(x)


class Network(nn.Module):
    """The base of all networks here.

    A derived class has `forward_features`, `forward_head` and a final `norm`; names of what follows it start with
    "head". Weights load under the names of other implementations too (`checkpoint.py`).
    """

    norm: nn.Module

    def __init__(self) -> None:
        super().__init__()
        self._is_fused = self._has_warned = False
        self.register_load_state_dict_pre_hook(translate_names)
        self.register_load_state_dict_pre_hook(refuse_other_norm)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the blocks in the backward pass instead of keeping their activations.

        As everywhere in timm, batch norms then update their running statistics twice a step.
        """
        for module in self.modules():
            if isinstance(module, Blocks):
                module.grad_checkpointing = enable

    def fuse(self: Self) -> Self:
        """Make the network one for evaluation alone, in place: faster, and equal within rounding.

        Every block becomes a `FusedContainerBlock`, and a final batch norm a scale and a shift. No parameter requires
        gradients then, and `train()` changes nothing but the dropout before the classifier; a new classifier
        (`reset_classifier`) can be trained on the features. `copy.deepcopy(model).fuse()` keeps a network to train.

        The state dict has other names. Load a checkpoint before, or one of a fused network after: anything else raises.
        Fusing twice is fusing once. `timm.utils.reparameterize_model(model)` does the same to the blocks (of a copy, if
        not asked otherwise), but leaves the final norm.

        Returns:
            The network itself, in evaluation mode.
        """
        reparameterize_model(self, inplace=True)
        if not isinstance(self.norm, ChannelAffine) and why_not_foldable(self.norm.eval(), False) is None:
            self.norm = ChannelAffine(*affine_of(self.norm).scale_and_shift())
        self._is_fused = True
        return self.eval().requires_grad_(False)

    def explain(self, input_size: Sequence[int] | None = None) -> str:
        """A table of what runs: block by block, what is fused in training, in evaluation and after `fuse()`, which
        backend serves each op, and the reason wherever it is not the fastest.

        Runs the network once, on a black image, in evaluation.

        Args:
            input_size: (channels, height, width); by default that of timm's configuration of the network.

        Raises:
            ValueError: the network has no configuration, and no size is given.
        """
        size = input_size or getattr(self, "pretrained_cfg", {}).get("input_size")
        if size is None:
            raise ValueError("input_size: expected (channels, height, width) because timm did not make the network")
        like = next(self.parameters())
        return explanation(explain_blocks(self, like.new_zeros(1, *size)))

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False):
        """As everywhere; an error names five names of a kind and their count, not all of a network."""
        try:
            return super().load_state_dict(state_dict, strict, assign)
        except RuntimeError as error:
            raise RuntimeError(shortened(str(error))) from None

    def train(self: Self, mode: bool = True) -> Self:
        """As everywhere; but of a network that was fused, only the classifier follows.

        Where nothing of it can be trained, training mode warns, once.
        """
        super().train(mode)
        if self._is_fused:
            if mode and not self._has_warned and not any(p.requires_grad for p in self.parameters()):
                self._has_warned = True
                warnings.warn(
                    "train(): the network was fused, which is for evaluation alone: it stays in evaluation mode and "
                    "has no parameters to train. Train it before fuse(), or give it a new classifier "
                    "(reset_classifier)",
                    stacklevel=2,
                )
            for name, child in self.named_children():
                child.train(mode and name.startswith("head"))
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def _set_grids(self, img_size: int | Grid, grids: Iterable[tuple[nn.Module, Grid]]) -> None:
        """Resize the dense affinities of each part of the network to its grid.

        Raises:
            ValueError: a grid is empty.
            RuntimeError: one of them is in a fused block.
        """
        dense = [
            (module, grid)
            for part, grid in grids
            for module in part.modules()
            if getattr(module, "grid_size", None) is not None
        ]
        if not all(isinstance(module, ContextAggregation) for module, _ in dense):
            raise RuntimeError("set_input_size: the network is fused, which fixes its grid: call it before fuse()")
        if any(min(grid) < 1 for _, grid in dense):
            raise ValueError(f"img_size: expected pixels for at least one token in each part, got {img_size}")
        for module, grid in dense:
            module.set_grid_size(grid)
        update_model_input_size(self, as_size("img_size", img_size))


def check_images(x: Tensor, in_chans: int, least: Grid) -> None:
    """`x` is a batch of images that leave every part of a network a token: of at least so many pixels.

    Raises:
        TypeError: no tensor.
        ValueError: not (B, in_chans, H, W), or too small.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"x: expected a tensor (B, C, H, W), got {type(x).__name__}")
    if x.ndim != 4 or x.shape[1] != in_chans:
        raise ValueError(f"x: expected images (B, C, H, W) with C = {in_chans}, got {tuple(x.shape)}")
    height, width = x.shape[-2:]
    if height < least[0] or width < least[1]:
        raise ValueError(f"x: expected at least {least[0]}×{least[1]} pixels to embed, got {height}×{width}")


def init_truncated(layer: nn.Module) -> None:
    """Linear layers as DeiT's and the released CONTAINER's start: weight truncated N(0, 0.02²), bias 0."""
    if isinstance(layer, nn.Linear):
        nn.init.trunc_normal_(layer.weight, std=0.02)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def grid_of(img_size: Grid, patch_size: Grid) -> Grid:
    """Rows and columns of whole patches in an image; the pixels left over at its borders are not seen."""
    return img_size[0] // patch_size[0], img_size[1] // patch_size[1]


def as_size(name: str, value: int | Grid) -> Grid:
    """(height, width) of what may be one number for both.

    Raises:
        ValueError: it is neither one positive integer nor two.
    """
    sides = (value, value) if isinstance(value, int) else value
    if not isinstance(sides, Sequence) or len(sides) != 2 or not all(type(n) is int and n > 0 for n in sides):
        raise ValueError(f"{name}: expected one positive integer or two, got {value!r}")
    return tuple(sides)
