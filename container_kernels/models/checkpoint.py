# SPDX-License-Identifier: MIT
"""Loading checkpoints, ours and the release's, without ever running pickled code."""

import re
from pathlib import Path

from timm.models import load_state_dict
from torch import Tensor, nn

from ..modules.deploy import refuse_weights_of_the_other_kind

# Name in the released network -> name here. It calls the value projection conv1, the output projection conv2 and
# the depthwise filter attn (static blocks) or conv (mixing blocks).
_RELEASE_NAMES = [
    (re.compile(r"^patch_embed(\d+)\."), lambda m: f"stages.{int(m[1]) - 1}.downsample."),
    (re.compile(r"^blocks(\d+)\.(\d+)\."), lambda m: f"stages.{int(m[1]) - 1}.blocks.{m[2]}."),
    (re.compile(r"(blocks\.\d+)\.conv1\."), r"\1.aggregation.in_proj."),
    (re.compile(r"(blocks\.\d+)\.conv2\."), r"\1.aggregation.out_proj."),
    (re.compile(r"(blocks\.\d+)\.(?:attn|conv)\.(weight|bias)$"), r"\1.aggregation.local_\2"),
    (re.compile(r"(blocks\.\d+)\.sa_weight$"), r"\1.aggregation.gate"),
    (re.compile(r"^head\.(weight|bias)$"), r"head.fc.\1"),
]
_IS_RELEASE = re.compile(r"^(patch_embed|blocks)\d+\.")
# 1×1 convolutions are linear layers here, depthwise filters have no middle dimension.
_LINEAR = re.compile(r"\.(in_proj|out_proj|fc1|fc2)\.weight$")
_DEPTHWISE = re.compile(r"\.(local_weight|pos_embed\.weight)$")


def checkpoint_filter_fn(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """A state dict with this package's names and shapes, from one with the release's or already ours.

    Weights may lie under "model" or "state_dict", as training programs save them.
    """
    for wrapper in ("model", "state_dict"):
        if isinstance(state_dict.get(wrapper), dict):
            state_dict = state_dict[wrapper]
    if not any(map(_IS_RELEASE.match, state_dict)):
        return state_dict
    return {(ours := _our_name(name)): _our_shape(ours, tensor) for name, tensor in state_dict.items()}


def translate_release_names(model: nn.Module, state_dict: dict, prefix: str, *_) -> None:
    """`load_state_dict` pre-hook: a released network's weights load wherever a state dict does."""
    own = {name[len(prefix) :]: tensor for name, tensor in state_dict.items() if name.startswith(prefix)}
    translated = checkpoint_filter_fn(own, model)
    if translated is own:
        return
    for name in own:
        del state_dict[prefix + name]
    state_dict.update({prefix + name: tensor for name, tensor in translated.items()})


def refuse_other_norm(model: nn.Module, state_dict: dict, prefix: str, *_) -> None:
    """`load_state_dict` pre-hook: `model.norm` refuses weights of the other kind, as blocks do themselves."""
    refuse_weights_of_the_other_kind(model.norm, state_dict, f"{prefix}norm.")


def load_checkpoint(model: nn.Module, path: str | Path, *, use_ema: bool = True, strict: bool = True):
    """Load the weights at `path` into `model`: a checkpoint of ours, of the trainer or of the release.

    Call `model.fuse()` after loading; before it only where the file was saved from a fused network.

    Args:
        model: the network to fill.
        path: a `torch.save` file or .safetensors. It is read with `weights_only=True`: no pickled code is executed.
        use_ema: take the averaged weights when the file has them, as `timm.create_model(checkpoint_path=...)` does.
        strict: names must match exactly.

    Returns:
        Missing and unexpected names, as `nn.Module.load_state_dict`.

    Raises:
        FileNotFoundError: there is no such file.
        RuntimeError: the file is no checkpoint, holds something other than tensors and plain values, or names or shapes
            do not match the model's; also with strict=False, where either the file or the model is fused.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"path: expected a checkpoint file, got {path}, which is not a file")
    try:
        state_dict = load_state_dict(str(path), use_ema=use_ema, weights_only=True)
    except Exception as error:  # a broken file fails in as many ways as there are formats
        raise RuntimeError(f"path: expected a checkpoint, but {path} cannot be read as one: {error!r}") from error
    return model.load_state_dict(checkpoint_filter_fn(state_dict, model), strict=strict)


def _our_name(name: str) -> str:
    for pattern, replacement in _RELEASE_NAMES:
        name = pattern.sub(replacement, name)
    return name


def _our_shape(name: str, tensor: Tensor) -> Tensor:
    if _LINEAR.search(name) and tensor.ndim == 4:
        return tensor.flatten(1)
    if _DEPTHWISE.search(name) and tensor.ndim == 4:
        return tensor.squeeze(1)
    return tensor
