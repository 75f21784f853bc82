# SPDX-License-Identifier: MIT
"""The registered networks of one resolution: DeiT, CONTAINER-PAM, MLP-Mixer and the multi-head MLP-Mixer.

Papers: Touvron et al., arXiv:2012.12877 (DeiT); Tolstikhin et al., arXiv:2105.01601 (MLP-Mixer); the others as in
`container_variants.py`. `deit_tiny`, `deit_small` and `mixer` compute what timm's deit_tiny_patch16_224,
deit_small_patch16_224 and mixer_b16_224 compute; weights of those load by their own names.
"""

from timm.data import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    IMAGENET_INCEPTION_MEAN,
    IMAGENET_INCEPTION_STD,
)
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model

from .checkpoint import checkpoint_filter_fn
from .isotropic import IsotropicContainer


def _cfg(url: str = "", **kwargs) -> dict:
    return {
        "url": url,
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "fixed_input_size": True,
        "pool_size": None,
        "crop_pct": 0.875,  # as DeiT and MLP-Mixer were evaluated: 224 of 256 pixels
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
        "license": "mit",
        **kwargs,
    }


_MIXER_COLORS = {"mean": IMAGENET_INCEPTION_MEAN, "std": IMAGENET_INCEPTION_STD}  # what MLP-Mixer was trained on
default_cfgs = generate_default_cfgs(
    {
        "container_pam.untrained": _cfg(),
        "deit_small.untrained": _cfg(),
        "deit_tiny.untrained": _cfg(),
        "mh_mixer.untrained": _cfg(**_MIXER_COLORS),
        "mixer.untrained": _cfg(**_MIXER_COLORS),
    }
)
_MIXER = {
    "embed_dim": 768,
    "num_heads": 1,
    "dynamic": False,
    "static": "dense",
    "hidden_tokens": 384,
    "projections": False,
    "class_token": False,
    "pos_embed": False,
    "global_pool": "avg",
}


def _create(variant: str, pretrained: bool, **kwargs) -> IsotropicContainer:
    return build_model_with_cfg(
        IsotropicContainer,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": kwargs.pop("out_indices", 3), "feature_cls": "getter"},
        **kwargs,
    )


@register_model
def deit_tiny(pretrained: bool = False, **kwargs) -> IsotropicContainer:
    """DeiT-Ti: attention alone, class token, position embedding; 5.7 M parameters."""
    return _create("deit_tiny", pretrained, **{"embed_dim": 192, "num_heads": 3, **kwargs})


@register_model
def deit_small(pretrained: bool = False, **kwargs) -> IsotropicContainer:
    """DeiT-S: attention alone, class token, position embedding; 22.1 M parameters."""
    return _create("deit_small", pretrained, **kwargs)


@register_model
def container_pam(pretrained: bool = False, **kwargs) -> IsotropicContainer:
    """CONTAINER-PAM: DeiT-S, each head with a learned dense affinity beside attention; 24.8 M parameters."""
    return _create("container_pam", pretrained, **{"static": "dense", "mixing": "free", **kwargs})


@register_model
def mixer(pretrained: bool = False, **kwargs) -> IsotropicContainer:
    """MLP-Mixer-B/16: one token MLP a layer; 59.9 M parameters."""
    return _create("mixer", pretrained, **{**_MIXER, **kwargs})


@register_model
def mh_mixer(pretrained: bool = False, **kwargs) -> IsotropicContainer:
    """Multi-head MLP-Mixer: `mixer` with a token MLP for each of 12 heads; 79.8 M parameters."""
    return _create("mh_mixer", pretrained, **{**_MIXER, "num_heads": 12, **kwargs})
