# SPDX-License-Identifier: MIT
"""The names and shapes that other implementations of our networks give their weights, turned into ours."""

import re
from typing import NamedTuple

from torch import Tensor


class Naming(NamedTuple):
    """What an implementation calls its weights; `mark` is found in every state dict of its, in none of ours."""

    mark: re.Pattern
    names: tuple[tuple[str, str], ...]


# The release of CONTAINER calls the value projection conv1, the output projection conv2 and the depthwise filter attn
# (static blocks) or conv (mixing blocks), and counts stages from 1.
_CONTAINER = Naming(
    re.compile(r"^(patch_embed|blocks)\d+\."),
    (
        *((rf"^patch_embed{i + 1}\.", f"stages.{i}.downsample.") for i in range(4)),
        *((rf"^blocks{i + 1}\.(\d+)\.", rf"stages.{i}.blocks.\1.") for i in range(4)),
        (r"(blocks\.\d+)\.conv1\.", r"\1.aggregation.in_proj."),
        (r"(blocks\.\d+)\.conv2\.", r"\1.aggregation.out_proj."),
        (r"(blocks\.\d+)\.(?:attn|conv)\.(weight|bias)$", r"\1.aggregation.local_\2"),
        (r"(blocks\.\d+)\.sa_weight$", r"\1.aggregation.gate"),
        (r"^head\.(weight|bias)$", r"head.fc.\1"),
    ),
)
# timm's vision transformers, and with the same names the release of DeiT.
_VISION_TRANSFORMER = Naming(
    re.compile(r"^blocks\.\d+\.attn\.qkv\."),
    ((r"\.attn\.qkv\.", ".aggregation.in_proj."), (r"\.attn\.proj\.", ".aggregation.out_proj.")),
)
# timm's MLP-Mixers.
_MIXER = Naming(
    re.compile(r"^blocks\.\d+\.mlp_tokens\."),
    (
        (r"^stem\.", "patch_embed."),
        (r"\.mlp_tokens\.fc([12])\.weight$", r".aggregation.token_mlp.w\1"),
        (r"\.mlp_tokens\.fc([12])\.bias$", r".aggregation.token_mlp.b\1"),
        (r"\.mlp_channels\.", ".mlp."),
    ),
)
# 1×1 convolutions are linear layers here, depthwise filters have no middle dimension, token MLPs one for each head.
_LINEAR = re.compile(r"\.(in_proj|out_proj|fc1|fc2)\.weight$")
_DEPTHWISE = re.compile(r"\.(local_weight|pos_embed\.weight)$")
_TOKEN_MLP = re.compile(r"\.token_mlp\.(w|b)[12]$")


def translated(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """`state_dict` with our names and shapes; itself where it has them already, or unknown names."""
    for naming in (_CONTAINER, _VISION_TRANSFORMER, _MIXER):
        if any(map(naming.mark.search, state_dict)):
            return {(ours := _our_name(name, naming)): _our_shape(ours, state_dict[name]) for name in state_dict}
    return state_dict


def _our_name(name: str, naming: Naming) -> str:
    for pattern, replacement in naming.names:
        name = re.sub(pattern, replacement, name)
    return name


def _our_shape(name: str, tensor: Tensor) -> Tensor:
    if _LINEAR.search(name) and tensor.ndim == 4:
        return tensor.flatten(1)
    if _DEPTHWISE.search(name) and tensor.ndim == 4:
        return tensor.squeeze(1)
    if _TOKEN_MLP.search(name):
        return tensor.unsqueeze(0)
    return tensor
