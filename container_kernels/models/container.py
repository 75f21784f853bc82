# SPDX-License-Identifier: MIT
"""CONTAINER networks: four stages of `ContainerBlock`, registered with timm.

Paper: Gao, Lu, Li, Mottaghi, Kembhavi, "Container: Context Aggregation Network", NeurIPS 2021, arXiv:2106.01401.
`container_light` computes what the released `container_v1_light` computes; its checkpoints load by their own names.
"""

from collections.abc import Sequence

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import (
    ClassifierHead,
    LayerNorm2d,
    calculate_drop_path_rates,
    get_device_dtype,
    register_notrace_module,
    to_2tuple,
)
from timm.models import (
    build_model_with_cfg,
    checkpoint_seq,
    generate_default_cfgs,
    register_model,
)
from timm.models._features import feature_take_indices
from timm.utils import reparameterize_model
from torch import Tensor, nn

from ..modules import ContainerBlock
from ..modules.context_aggregation import Mixing, Static
from ..modules.deploy import ChannelAffine
from ..modules.folding import affine_of, is_foldable
from .checkpoint import checkpoint_filter_fn, refuse_other_norm, translate_release_names

__all__ = ["Container"]


@register_notrace_module  # torch.fx keeps the layer whole
class PatchEmbed(nn.Module):
    """Non-overlapping patches to tokens: convolution with kernel = stride, then LayerNorm over channels."""

    def __init__(self, in_chans: int, dim: int, stride: int, device=None, dtype=None) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, dim, stride, stride, device=device, dtype=dtype)
        self.norm = LayerNorm2d(dim, eps=1e-5, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        stride, (height, width) = self.proj.stride[0], x.shape[-2:]
        if height < stride or width < stride:
            raise ValueError(f"x: expected at least {stride}×{stride} pixels to embed, got {height}×{width}")
        return self.norm(self.proj(x))


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
        self.grad_checkpointing = False
        self.downsample = PatchEmbed(in_chans, dim, stride, **factory)
        self.blocks = nn.Sequential(*(ContainerBlock(dim, drop_path=p, **block, **factory) for p in drop_path))

    def forward(self, x: Tensor) -> Tensor:
        x = self.downsample(x)
        if self.grad_checkpointing and torch.is_grad_enabled():
            return checkpoint_seq(self.blocks, x)
        return self.blocks(x)


class Container(nn.Module):
    """Four-stage (or any-stage) context aggregation network.

    Every per-stage argument is a sequence with one entry a stage; `dynamic`, `static` and `mixing` may also be one
    value for all.

    Args:
        img_size: size of the input; only a dense static affinity depends on it.
        in_chans: channels of the input.
        num_classes: 0 for pooled features.
        global_pool: timm pooling, "" for none.
        embed_dims, depths, num_heads, mlp_ratios, strides: the stages.
        dynamic: stages with softmax attention.
        static: static affinity of the stages, as in `ContextAggregation`.
        kernel_size: side of the local window.
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
        depths: Sequence[int] = (3, 4, 8, 3),
        num_heads: Sequence[int] = (2, 4, 10, 16),
        mlp_ratios: Sequence[float] = (8, 8, 4, 4),
        strides: Sequence[int] = (4, 2, 2, 2),
        dynamic: bool | Sequence[bool] = True,
        static: Static | Sequence[Static | None] | None = "local",
        kernel_size: int = 5,
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
        dynamic, static, mixing = (_per_stage(value, stages) for value in (dynamic, static, mixing))
        per_stage = {
            "depths": depths, "num_heads": num_heads, "mlp_ratios": mlp_ratios, "strides": strides,
            "dynamic": dynamic, "static": static, "mixing": mixing,
        }  # fmt: skip
        for name, values in per_stage.items():
            if not isinstance(values, Sequence) or len(values) != stages:
                raise ValueError(f"{name}: expected {stages} entries, one a stage of embed_dims, got {values!r}")

        self._is_fused = False
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        drop_paths = iter(calculate_drop_path_rates(drop_path_rate, sum(depths)))
        self.feature_info = []
        blocks = []
        height, width = to_2tuple(img_size)
        reduction, channels = 1, in_chans
        for i, dim in enumerate(embed_dims):
            reduction *= strides[i]
            height, width = height // strides[i], width // strides[i]
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
                    kernel_size=kernel_size,
                    grid_size=(height, width) if static[i] in ("dense", "both") else None,
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
        self.register_load_state_dict_pre_hook(translate_release_names)
        self.register_load_state_dict_pre_hook(refuse_other_norm)

    def _init_head(self) -> None:
        # The released network draws its `nn.Linear` layers from a truncated normal: the head alone, since its
        # projections are 1×1 convolutions with PyTorch's default, which ours (as linear layers) have as well.
        if isinstance(self.head.fc, nn.Linear):
            nn.init.trunc_normal_(self.head.fc.weight, std=0.02)
            nn.init.zeros_(self.head.fc.bias)

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

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the blocks in the backward pass instead of keeping their activations.

        As everywhere in timm, batch norms then update their running statistics twice a step.
        """
        for stage in self.stages:
            stage.grad_checkpointing = enable

    def get_classifier(self) -> nn.Module:
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new classifier for `num_classes` (0: none), and pooling `global_pool` when given."""
        self.num_classes = num_classes
        self.head.in_features = self.num_features
        self.head.reset(num_classes, pool_type=global_pool, **get_device_dtype(self))
        self._init_head()

    def fuse(self) -> "Container":
        """Make the network one for evaluation alone, in place: faster, and equal within rounding.

        Every block becomes a `FusedContainerBlock`, and the final norm a scale and a shift. No parameter requires
        gradients then, and `train()` changes nothing but the dropout before the classifier; a new classifier
        (`reset_classifier`) can be trained on the features. `copy.deepcopy(model).fuse()` keeps a network to train.

        The state dict has other names. Load a checkpoint before, or one of a fused network after: anything else raises.
        Fusing twice is fusing once. `timm.utils.reparameterize_model(model)` does the same to the blocks (of a copy, if
        not asked otherwise), but leaves the final norm.

        Returns:
            The network itself, in evaluation mode.
        """
        reparameterize_model(self, inplace=True)
        if not isinstance(self.norm, ChannelAffine) and is_foldable(self.norm.eval(), None):
            self.norm = ChannelAffine(*affine_of(self.norm).scale_and_shift())
        self._is_fused = True
        return self.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> "Container":
        """As everywhere; but of a network that was fused, only the classifier follows."""
        super().train(mode)
        if self._is_fused:
            self.stages.eval()
            self.norm.eval()
        return self

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
        for index, stage in enumerate(self.stages[: last_taken + 1] if stop_early else self.stages):
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
        """(B, in_chans, H, W) to the normalised features of the last stage (B, num_features, H', W')."""
        return self.norm(self.stages(x))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool and classify; pooled features alone with `pre_logits`."""
        return self.head(x, pre_logits=pre_logits)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


def _per_stage(value, stages: int) -> tuple:
    """One entry a stage, from a sequence or a value for all."""
    return tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else (value,) * stages


def _cfg(url: str = "", **kwargs) -> dict:
    return {
        "url": url,
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "crop_pct": 0.875,  # the release resizes to 256 and crops 224
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "stages.0.downsample.proj",
        "classifier": "head.fc",
        "license": "mit",
        **kwargs,
    }


default_cfgs = generate_default_cfgs(
    {
        "container.untrained": _cfg(),
        "container_light.untrained": _cfg(),
        "container_tiny.untrained": _cfg(input_size=(3, 32, 32), pool_size=(2, 2), crop_pct=1.0),
    }
)


def _create(variant: str, pretrained: bool, **kwargs) -> Container:
    out_indices = kwargs.pop("out_indices", tuple(range(len(kwargs.get("depths", (3, 4, 8, 3))))))
    return build_model_with_cfg(
        Container,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": out_indices, "flatten_sequential": True},
        **kwargs,
    )


@register_model
def container(pretrained: bool = False, **kwargs) -> Container:
    """CONTAINER: every block mixes attention and 5×5 local aggregation; 22.4 M parameters."""
    return _create("container", pretrained, **kwargs)


@register_model
def container_light(pretrained: bool = False, **kwargs) -> Container:
    """CONTAINER-LIGHT: attention in stage 4 alone, so it scales to large images; 20.6 M parameters."""
    return _create("container_light", pretrained, **{"dynamic": (False, False, False, True), **kwargs})


@register_model
def container_tiny(pretrained: bool = False, **kwargs) -> Container:
    """A CONTAINER for 32×32 images that learns on a CPU in a minute; 1.1 M parameters."""
    config = {
        "img_size": 32,
        "embed_dims": (32, 64, 128, 160),
        "depths": (1, 1, 2, 1),
        "num_heads": (1, 2, 4, 5),
        "mlp_ratios": (4, 4, 4, 4),
        "strides": (2, 2, 2, 2),
    }
    return _create("container_tiny", pretrained, **{**config, **kwargs})
