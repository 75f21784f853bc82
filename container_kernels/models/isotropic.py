# SPDX-License-Identifier: MIT
"""Networks of one resolution, as DeiT and MLP-Mixer are: patches, `ContainerBlock`s in a row, a classifier."""

import torch
from timm.layers import (
    LayerNorm2d,
    calculate_drop_path_rates,
    get_device_dtype,
    resample_abs_pos_embed,
)
from timm.models._features import feature_take_indices
from timm.models.vision_transformer import global_pool_nlc
from torch import Tensor, nn

from ..modules import ContainerBlock
from ..modules.context_aggregation import Mixing, Static
from .base import Blocks, Network, PatchEmbed, as_size, check_images, grid_of, init_truncated

torch.fx.wrap("check_images")  # kept whole

_POOLING = ("", "token", "avg", "avgmax", "max")


class IsotropicContainer(Network):
    """Context aggregation network of one resolution, with class token and learned position embedding if wanted.

    `class_token=True`: the blocks see a column of tokens, an image (B, C, 1 + H·W, 1); a static affinity is then dense.
    `class_token=False`: they see the image (B, C, H, W), and every affinity is possible.

    The defaults are DeiT-S. With `static="dense", mixing="free"` that is CONTAINER-PAM. With `dynamic=False,
    static="dense", hidden_tokens=384, projections=False, class_token=False, pos_embed=False, global_pool="avg"` and one
    head it is an MLP-Mixer, with more a multi-head MLP-Mixer.

    Args:
        img_size: size of the input, which a position embedding or a dense affinity fixes (`set_input_size` changes it).
        dynamic_img_size: images of any size, as timm's vision transformers with this argument: the position embedding
            is resized in the forward pass to what is no `img_size`.
        patch_size: side of the patches, which do not overlap.
        in_chans: channels of the input.
        num_classes: 0 for pooled features.
        global_pool: "token" (the class token), "avg", "avgmax" or "max" over the others; "" for none. The final norm is
            before the pooling.
        embed_dim, depth, num_heads, mlp_ratio: width, number, heads and hidden layer of the blocks.
        class_token: with a class token before the patches.
        pos_embed: with a learned position embedding, added once, to the class token too.
        dynamic, static, kernel_size, mixing, hidden_tokens, projections, qkv_bias: see `ContextAggregation`.
        drop_rate: dropout before the classifier.
        proj_drop_rate: dropout after the projections of the blocks.
        drop_path_rate: stochastic depth, rising linearly from 0 over all blocks.
        norm_layer: norm of the blocks and of the network's output.

    Shape: (B, in_chans, H, W) to (B, num_classes).

    Raises:
        ValueError: an argument or the input's size does not fit.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int | tuple[int, int] = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "token",
        embed_dim: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        mlp_ratio: float = 4.0,
        class_token: bool = True,
        pos_embed: bool = True,
        dynamic: bool = True,
        static: Static | None = None,
        kernel_size: int | tuple[int, int] = 5,
        mixing: Mixing = "gate",
        hidden_tokens: int | None = None,
        projections: bool = True,
        qkv_bias: bool = True,
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        norm_layer: type[nn.Module] = LayerNorm2d,
        act_layer: type[nn.Module] = nn.GELU,
        dynamic_img_size: bool = False,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        if class_token and static in ("local", "both"):
            raise ValueError(
                f"class_token: expected False because static={static!r} has a window on the grid, got True"
            )
        if dynamic_img_size and static in ("dense", "both"):
            raise ValueError(
                f"dynamic_img_size: expected False because static={static!r} is a matrix over one grid, got True"
            )
        # Only what was given: norms of other libraries need not know the arguments.
        factory = {name: value for name, value in (("device", device), ("dtype", dtype)) if value is not None}
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.num_features = self.head_hidden_size = self.embed_dim = embed_dim
        self.num_prefix_tokens = 1 if class_token else 0
        self.patch_size = as_size("patch_size", patch_size)
        self.img_size, self.grid_size = self._fit(img_size)
        self._set_pooling(global_pool)

        has_one_size = (pos_embed or static in ("dense", "both")) and not dynamic_img_size
        fixed_size = self.img_size if has_one_size else None
        self.patch_embed = PatchEmbed(
            in_chans, embed_dim, self.patch_size, norm=False, fixed_size=fixed_size, **factory
        )
        tokens = self.num_prefix_tokens + self.grid_size[0] * self.grid_size[1]
        self.cls_token = nn.Parameter(torch.empty(1, 1, embed_dim, **factory)) if class_token else None
        self.pos_embed = nn.Parameter(torch.empty(1, tokens, embed_dim, **factory)) if pos_embed else None
        self.blocks = Blocks(
            *(
                ContainerBlock(
                    embed_dim,
                    num_heads,
                    mlp_ratio,
                    dynamic=dynamic,
                    static=static,
                    kernel_size=kernel_size,
                    grid_size=self.grid_size,
                    mixing=mixing,
                    qkv_bias=qkv_bias,
                    drop=proj_drop_rate,
                    drop_path=rate,
                    pos_embed=False,
                    num_prefix_tokens=self.num_prefix_tokens,
                    hidden_tokens=hidden_tokens,
                    projections=projections,
                    norm_layer=norm_layer,
                    act_layer=act_layer,
                    **factory,
                )
                for rate in calculate_drop_path_rates(drop_path_rate, depth)
            )
        )
        self.feature_info = [
            {"num_chs": embed_dim, "reduction": max(self.patch_size), "module": f"blocks.{i}"} for i in range(depth)
        ]
        self.norm = norm_layer(embed_dim, **factory)
        self.head_drop = nn.Dropout(drop_rate)
        self.head = nn.Linear(embed_dim, num_classes, **factory) if num_classes > 0 else nn.Identity()
        self._init_weights()

    def _init_weights(self) -> None:
        """As DeiT: linear layers, class token and position embedding truncated N(0, 0.02²), their biases 0."""
        self.apply(init_truncated)
        for parameter in (self.cls_token, self.pos_embed):
            if parameter is not None:
                nn.init.trunc_normal_(parameter, std=0.02)

    def no_weight_decay(self) -> set[str]:
        """Names kept from weight decay beside what timm keeps from it by shape: biases, norms, scalars.

        Dense affinities are matrices, which decay as all others; the biases of token MLPs have a row for each head.
        """
        biases = {name for name, _ in self.named_parameters() if name.endswith((".token_mlp.b1", ".token_mlp.b2"))}
        return {"cls_token", "pos_embed"} | biases

    def group_matcher(self, coarse: bool = False) -> dict:
        """Patterns that put parameters in layers, for timm's layer-wise learning-rate decay."""
        stem = r"^(?:cls_token|pos_embed|patch_embed)"
        return {"stem": stem, "blocks": [(r"^blocks\.(\d+)", None), (r"^norm", (99999,))]}

    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new classifier for `num_classes` (0: none), and pooling `global_pool` when given."""
        if global_pool is not None:
            self._set_pooling(global_pool)
        self.num_classes = num_classes
        factory = get_device_dtype(self)
        self.head = nn.Linear(self.embed_dim, num_classes, **factory) if num_classes > 0 else nn.Identity()
        self.head.train(self.training).apply(init_truncated)

    def _set_pooling(self, global_pool: str) -> None:
        if global_pool not in _POOLING:
            raise ValueError(f"global_pool: expected one of {_POOLING}, got {global_pool!r}")
        if global_pool == "token" and self.num_prefix_tokens == 0:
            raise ValueError(
                'global_pool: expected "avg", "avgmax", "max" or "" because class_token=False, got "token"'
            )
        self.global_pool = global_pool

    def set_input_size(self, img_size: int | tuple[int, int]) -> None:
        """Take images of another size: position embedding and dense affinities are resized in place.

        The former as everywhere in timm, the latter by the rule of `container_kernels.modules.dense_affinity`.
        Parameters are replaced by new ones: an optimizer has to be made anew.

        Raises:
            ValueError: the size is no size, or smaller than a patch.
            RuntimeError: a dense affinity is in a fused block.
        """
        img_size, grid_size = self._fit(img_size)
        self._set_grids(img_size, [(self.blocks, grid_size)])
        if self.pos_embed is not None:
            resized = resample_abs_pos_embed(self.pos_embed, grid_size, self.grid_size, self.num_prefix_tokens)
            self.pos_embed = nn.Parameter(resized.detach(), self.pos_embed.requires_grad)
        self.img_size, self.grid_size = img_size, grid_size
        if self.patch_embed.fixed_size is not None:
            self.patch_embed.fixed_size = img_size

    def _fit(self, img_size: int | tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
        """(height, width) and the grid of their patches."""
        img_size = as_size("img_size", img_size)
        grid_size = grid_of(img_size, self.patch_size)
        if min(grid_size) < 1:
            raise ValueError(f"img_size: expected at least one patch of {self.patch_size} pixels, got {img_size}")
        return img_size, grid_size

    def _embed(self, x: Tensor) -> Tensor:
        """Images (B, in_chans, H, W) to what blocks take: the image of patches, or a column with the class token."""
        check_images(x, self.in_chans, self.patch_size)
        x = self.patch_embed(x)
        grid_size = x.shape[-2:]
        # Memory is (B, tokens, C) from here on, whatever the image's was: no layout below costs a copy.
        x = _tokens(x).contiguous()
        if self.cls_token is not None:
            x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1)
        if self.pos_embed is not None:
            x = x + self._position_embedding(grid_size)
        x = x.transpose(1, 2)
        return x.unflatten(2, grid_size) if self.cls_token is None else x.unsqueeze(-1)

    def _position_embedding(self, grid_size: tuple[int, int]) -> Tensor:
        """That of an image of `grid_size` patches; only with dynamic_img_size it may be another than the network's."""
        if self.patch_embed.fixed_size is not None:
            return self.pos_embed
        return resample_abs_pos_embed(self.pos_embed, grid_size, self.grid_size, self.num_prefix_tokens)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list | tuple[Tensor, list]:
        """The outputs of blocks `indices` (last n if an int, all if None), and the final features unless excluded.

        Args:
            return_prefix_tokens: give pairs of an output and its class token (B, 1, C).
            norm: apply the final norm to the outputs.
            stop_early: leave out blocks after the last one asked for.
            output_fmt: "NCHW" or "NLC", both without the class token.
            intermediates_only: return the list alone.

        Raises:
            ValueError: another `output_fmt`.
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f'output_fmt: expected "NCHW" or "NLC", got {output_fmt!r}')
        take, last_taken = feature_take_indices(len(self.blocks), indices)
        grid_size = grid_of(tuple(x.shape[-2:]), self.patch_size)
        x = self._embed(x)
        intermediates = []
        for index, block in enumerate(self.blocks[: last_taken + 1] if stop_early else self.blocks):
            x = self.blocks.call(block, x)
            if index in take:
                y = _tokens(self.norm(x) if norm else x)
                prefix, y = y[:, : self.num_prefix_tokens], y[:, self.num_prefix_tokens :]
                if output_fmt == "NCHW":
                    y = y.transpose(1, 2).unflatten(2, grid_size)
                intermediates.append((y, prefix) if return_prefix_tokens and self.num_prefix_tokens else y)
        if intermediates_only:
            return intermediates
        return _tokens(self.norm(x)), intermediates

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop what `forward_intermediates(indices=...)` does not need; returns the absolute indices."""
        take, last_taken = feature_take_indices(len(self.blocks), indices)
        del self.blocks[last_taken + 1 :]
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.reset_classifier(0, "")
        return take

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) to the last block's normalized tokens (B, N, num_features), the class token first."""
        return _tokens(self.norm(self.blocks(self._embed(x))))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool and classify; pooled features alone with `pre_logits`."""
        x = global_pool_nlc(x, pool_type=self.global_pool, num_prefix_tokens=self.num_prefix_tokens)
        x = self.head_drop(x)
        return x if pre_logits else self.head(x)


def _tokens(x: Tensor) -> Tensor:
    """(B, C, H, W) to (B, H·W, C), a view in channels_last."""
    return x.flatten(2).transpose(1, 2)
