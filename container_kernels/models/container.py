# SPDX-License-Identifier: MIT
"""Pyramids: stages of `ContainerBlock`s, each on a coarser grid than the one before."""

import math
from collections.abc import Sequence

import torch.fx
from timm.layers import ClassifierHead, calculate_drop_path_rates, get_device_dtype
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from ..modules import ContainerBlock
from ..modules.context_aggregation import Mixing, Static
from ..modules.dense_affinity import Grid
from ..modules.sharding import own_output
from .base import Blocks, Network, PatchEmbed, as_size, check_images, grid_of, init_truncated

torch.fx.wrap("check_images")  # kept whole


class ContainerStage(nn.Module):
    """Patch embedding to a coarser grid, then `depth` blocks."""

    def __init__(
        self,
        in_chans: int,
        dim: int,
        stride: int,
        drop_path: Sequence[float],
        *,
        device=None,
        dtype=None,
        **block,
    ) -> None:
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        self.downsample = PatchEmbed(in_chans, dim, stride, **factory)
        self.blocks = Blocks(*(ContainerBlock(dim, drop_path=p, **block, **factory) for p in drop_path))

    def forward(self, x: Tensor) -> Tensor:
        return own_output(self, self.blocks(self.downsample(x)))


class Container(Network):
    """Four-stage (or any-stage) context aggregation network.

    Every per-stage argument is a sequence with one entry per stage, or (but for `embed_dims`) one value for all. So one
    call of `timm.create_model` chooses an aggregation for each stage.

    Args:
        img_size: size of the input; only a dense static affinity depends on it (`set_input_size` changes it).
        in_chans: channels of the input.
        num_classes: 0 for pooled features.
        global_pool: timm pooling, "" for none.
        embed_dims, depths, num_heads, mlp_ratios, strides: the stages.
        dynamic: stages with softmax attention.
        static: static affinity of the stages, as in `ContextAggregation`.
        kernel_size: side of the local window, or its height and width.
        mixing: "gate" or "free", as in `ContextAggregation`.
        drop_rate: dropout before the classifier.
        proj_drop_rate: dropout after the projections of the blocks.
        drop_path_rate: stochastic depth, rising linearly from 0 over all blocks.
        norm_layer: norm of the blocks and of the network's output.

    Shape: (B, in_chans, H, W) to (B, num_classes); any H, W of at least the product of the strides. Fastest in
    `torch.channels_last`.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        embed_dims: Sequence[int] = (64, 128, 320, 512),
        depths: int | Sequence[int] = (3, 4, 8, 3),
        num_heads: int | Sequence[int] = (2, 4, 10, 16),
        mlp_ratios: float | Sequence[float] = (8, 8, 4, 4),
        strides: int | Sequence[int] = (4, 2, 2, 2),
        dynamic: bool | Sequence[bool] = True,
        static: Static | Sequence[Static | None] | None = "local",
        kernel_size: int | Sequence[int | tuple[int, int]] = 5,
        mixing: Mixing | Sequence[Mixing] = "gate",
        qkv_bias: bool = True,
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        norm_layer: type[nn.Module] = nn.BatchNorm2d,
        act_layer: type[nn.Module] = nn.GELU,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        # Only what was given: norms of other libraries need not know the arguments.
        factory = {name: value for name, value in (("device", device), ("dtype", dtype)) if value is not None}
        stages = len(embed_dims)
        depths, num_heads, mlp_ratios, strides, dynamic, static, kernel_size, mixing = (
            _per_stage(value, stages)
            for value in (depths, num_heads, mlp_ratios, strides, dynamic, static, kernel_size, mixing)
        )
        per_stage = {
            "depths": depths, "num_heads": num_heads, "mlp_ratios": mlp_ratios, "strides": strides,
            "dynamic": dynamic, "static": static, "kernel_size": kernel_size, "mixing": mixing,
        }  # fmt: skip
        for name, values in per_stage.items():
            if len(values) != stages:
                raise ValueError(
                    f"{name}: expected one value, or {stages}, one per stage of embed_dims, got {len(values)}: {values}"
                )

        self.strides = tuple(strides)
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        drop_paths = iter(calculate_drop_path_rates(drop_path_rate, sum(depths)))
        self.feature_info = []
        blocks = []
        grids = self._grids(img_size)
        reduction, channels = 1, in_chans
        for i, dim in enumerate(embed_dims):
            reduction *= strides[i]
            blocks.append(
                ContainerStage(
                    channels,
                    dim,
                    strides[i],
                    [next(drop_paths) for _ in range(depths[i])],
                    num_heads=num_heads[i],
                    mlp_ratio=mlp_ratios[i],
                    dynamic=dynamic[i],
                    static=static[i],
                    kernel_size=kernel_size[i],
                    grid_size=grids[i] if static[i] in ("dense", "both") else None,
                    mixing=mixing[i],
                    qkv_bias=qkv_bias,
                    drop=proj_drop_rate,
                    norm_layer=norm_layer,
                    act_layer=act_layer,
                    **factory,
                )
            )
            channels = dim
            self.feature_info.append({"num_chs": dim, "reduction": reduction, "module": f"stages.{i}"})
        self.num_features = self.head_hidden_size = channels
        self.stages = nn.Sequential(*blocks)
        self.norm = norm_layer(channels, **factory)
        self.head = ClassifierHead(channels, num_classes, pool_type=global_pool, drop_rate=drop_rate, **factory)
        self._init_head()

    def _init_head(self) -> None:
        # The released network draws its `nn.Linear` layers from a truncated normal: the head alone, since its
        # projections are 1×1 convolutions with PyTorch's default, which ours (as linear layers) have as well.
        init_truncated(self.head.fc)

    def no_weight_decay(self) -> set[str]:
        """Names kept from weight decay beside biases, norms and scalars (which timm keeps from it by shape)."""
        return set()

    def group_matcher(self, coarse: bool = False) -> dict:
        """Patterns that put parameters in layers, for timm's layer-wise learning-rate decay."""
        fine = [
            (r"^stages\.(\d+)\.downsample", (0,)),
            (r"^stages\.(\d+)\.blocks\.(\d+)", None),
            (r"^norm", (99999,)),
        ]
        return {"stem": r"^stages\.0\.downsample", "blocks": r"^stages\.(\d+)" if coarse else fine}

    def get_classifier(self) -> nn.Module:
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new classifier for `num_classes` (0: none), and pooling `global_pool` when given."""
        self.num_classes = num_classes
        self.head.in_features = self.num_features
        self.head.reset(num_classes, pool_type=global_pool, **get_device_dtype(self))
        self._init_head()

    def set_input_size(self, img_size: int | tuple[int, int]) -> None:
        """Take images of another size: dense affinities are resized in place, nothing else depends on it.

        By the rule of `container_kernels.modules.dense_affinity`. Parameters are replaced by new ones: an optimizer has
        to be made anew.

        Raises:
            ValueError: the size leaves no token to a dense affinity.
            RuntimeError: a dense affinity is in a fused block.
        """
        self._set_grids(img_size, zip(self.stages, self._grids(img_size), strict=False))  # fewer if pruned

    def _least_size(self, stages: int) -> Grid:
        """The smallest image that leaves the first `stages` stages a token."""
        return (math.prod(self.strides[:stages]),) * 2

    def _grids(self, img_size: int | tuple[int, int]) -> list[Grid]:
        """The grid of each stage for images of `img_size`."""
        grids = [as_size("img_size", img_size)]
        for stride in self.strides:
            grids.append(grid_of(grids[-1], (stride, stride)))
        return grids[1:]

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The outputs of stages `indices` (last n if an int, all if None), and the final features unless excluded.

        Args:
            norm: apply the final norm to the last stage's output.
            stop_early: leave out stages after the last one asked for.
            output_fmt: "NCHW".
            intermediates_only: return the list alone.

        Raises:
            ValueError: another `output_fmt`.
        """
        if output_fmt != "NCHW":
            raise ValueError(f'output_fmt: expected "NCHW", got {output_fmt!r}')
        take, last_taken = feature_take_indices(len(self.stages), indices)
        last = len(self.stages) - 1
        intermediates = []
        index = 0
        stages = self.stages[: last_taken + 1] if stop_early else self.stages
        check_images(x, self.in_chans, self._least_size(len(stages)))
        for index, stage in enumerate(stages):
            x = stage(x)
            if index in take:
                intermediates.append(self.norm(x) if norm and index == last else x)
        if intermediates_only:
            return intermediates
        return self.norm(x) if index == last else x, intermediates

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop what `forward_intermediates(indices=...)` does not need; returns the absolute indices."""
        take, last_taken = feature_take_indices(len(self.stages), indices)
        shortened = last_taken < len(self.stages) - 1
        self.stages = self.stages[: last_taken + 1]
        if shortened:
            # The final norm and the classifier belong to the width of a stage that is gone.
            self.num_features = self.head_hidden_size = self.feature_info[last_taken]["num_chs"]
        if prune_norm or shortened:
            self.norm = nn.Identity()
        if prune_head or shortened:
            self.reset_classifier(0, "")
        return take

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) to the normalized features of the last stage (B, num_features, H', W')."""
        check_images(x, self.in_chans, self._least_size(len(self.stages)))
        return self.norm(self.stages(x))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool and classify; pooled features alone with `pre_logits`."""
        return self.head(x, pre_logits=pre_logits)


def _per_stage(value, stages: int) -> tuple:
    """One entry a stage, from a sequence or a value for all."""
    return tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else (value,) * stages
