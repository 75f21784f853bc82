# SPDX-License-Identifier: MIT
"""Loading checkpoints, ours and those of other implementations, without ever running pickled code."""

import re
from pathlib import Path

from torch import Tensor, nn

from ..modules.fused_block import refuse_weights_of_the_other_kind
from .checkpoint_file import CheckpointFileError, read_checkpoint_file, state_dict_of
from .grid_resizing import resized
from .key_mapping import translated


def checkpoint_filter_fn(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """A state dict with this package's names and shapes, from one with the release's, DeiT's, timm's or already ours.

    Weights may lie under "model" or "state_dict", as training programs save them. Position embeddings and dense
    affinities of another image size are resized to the model's (`grid_resizing.py`).
    """
    for wrapper in ("model", "state_dict"):
        if isinstance(state_dict.get(wrapper), dict):
            state_dict = state_dict[wrapper]
    return resized(translated(state_dict), model)


def translate_names(model: nn.Module, state_dict: dict, prefix: str, *_) -> None:
    """`load_state_dict` pre-hook: weights of other implementations load wherever a state dict does, if sizes agree."""
    own = {name[len(prefix) :]: tensor for name, tensor in state_dict.items() if name.startswith(prefix)}
    ours = translated(own)
    if ours is own:
        return
    for name in own:
        del state_dict[prefix + name]
    state_dict.update({prefix + name: tensor for name, tensor in ours.items()})


def refuse_other_norm(model: nn.Module, state_dict: dict, prefix: str, *_) -> None:
    """`load_state_dict` pre-hook: `model.norm` refuses weights of the other kind, as blocks do themselves."""
    refuse_weights_of_the_other_kind(model.norm, state_dict, f"{prefix}norm.")


def shortened(message: str, most: int = 5) -> str:
    """The message of `load_state_dict`, with at most so many names of a kind and their count."""
    lines = []
    mismatches = [line for line in message.splitlines() if "size mismatch for" in line]
    for line in message.splitlines():
        if line in mismatches[most:]:
            continue
        names = re.findall(r'"([^"]*)"', line)
        if "key(s) in state_dict" in line and len(names) > most:
            kept = ", ".join(f'"{name}"' for name in names[:most])
            line = f"{line.split(':')[0]}: {kept}, and {len(names) - most} more of {len(names)}."
        lines.append(line)
    if len(mismatches) > most:
        lines.append(f"\tand {len(mismatches) - most} more sizes of {len(mismatches)} that differ.")
    return "\n".join(lines)


def load_checkpoint(model: nn.Module, path: str | Path, *, use_ema: bool = True, strict: bool = True):
    """Load the weights at `path` into `model`: a checkpoint of ours, of the trainer, of CONTAINER's or DeiT's release,
    or of timm's DeiT or MLP-Mixer.

    Weights for another image size are resized to the model's. Call `model.fuse()` after loading; before it only where
    the file was saved from a fused network.

    Args:
        model: the network to fill.
        path: a file of `torch.save` or safetensors, whatever its suffix. No pickled code is executed.
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
        state_dict = state_dict_of(read_checkpoint_file(path), use_ema=use_ema)
    except (OSError, CheckpointFileError) as error:
        raise RuntimeError(f"path: expected a checkpoint, but {path} cannot be read as one: {error}") from error
    return model.load_state_dict(checkpoint_filter_fn(state_dict, model), strict=strict)
