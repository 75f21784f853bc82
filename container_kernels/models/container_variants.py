# SPDX-License-Identifier: MIT
"""The registered pyramids: CONTAINER and what is left of it when one of its affinities is taken away.

Paper: Gao, Lu, Li, Mottaghi, Kembhavi, "Container: Context Aggregation Network", NeurIPS 2021, arXiv:2106.01401.
`container_light` computes what the released `container_v1_light` computes; its checkpoints load by their own names.
"""

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model

from .checkpoint import checkpoint_filter_fn
from .container import Container


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
        "container_depthwise.untrained": _cfg(),
        "container_light.untrained": _cfg(),
        "container_tiny.untrained": _cfg(input_size=(3, 32, 32), pool_size=(2, 2), crop_pct=1.0),
        "h_deit.untrained": _cfg(),
    }
)


def _create(variant: str, pretrained: bool, **kwargs) -> Container:
    out_indices = kwargs.pop("out_indices", tuple(range(len(kwargs.get("embed_dims", range(4))))))
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
def h_deit(pretrained: bool = False, **kwargs) -> Container:
    """H-DeiT: attention alone in all four stages; 22.3 M parameters."""
    return _create("h_deit", pretrained, **{"static": None, **kwargs})


@register_model
def container_depthwise(pretrained: bool = False, **kwargs) -> Container:
    """5×5 depthwise convolutions alone in all four stages; 19.1 M parameters."""
    return _create("container_depthwise", pretrained, **{"dynamic": False, **kwargs})


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
