# SPDX-License-Identifier: MIT
"""Reading a file of weights: told apart by its first bytes, without ever running pickled code, with an error that says
what the file is."""

import argparse
import re
import zipfile
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from timm.models import clean_state_dict
from torch import Tensor

HEAD = 512
BRANCHES = ("teacher", "student")  # of self-supervised training
LONGEST_HEADER = 10**8  # of safetensors, whose first eight bytes are its length
# What is saved under the name of a checkpoint by mistake.
SIGNATURES = (
    (b"version https://git-lfs", "a Git LFS pointer in place of the file; fetch it with git lfs pull"),
    (b"<!doctype html", "an HTML page in place of the file; download it again"),
    (b"<html", "an HTML page in place of the file; download it again"),
    (b"<?xml", "an XML text"),
    (b"{", "a JSON text"),
    (b"\x1f\x8b", "compressed by gzip; unpack it"),
    (b"\xfd7zXZ", "compressed by xz; unpack it"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd; unpack it"),
    (b"\x89HDF", "an HDF5 file, as Keras writes"),
    (b"\x93numpy", "a NumPy array"),
    (b"GGUF", "a GGUF file"),
    (b"\x89PNG", "an image"),
    (b"\xff\xd8\xff", "an image"),
)


class CheckpointFileError(RuntimeError):
    """A file that cannot be read as a checkpoint. The message is what follows its name: what it is, or why not."""


def read_checkpoint_file(path: str | Path) -> Any:
    """The content of a file of `torch.save` or safetensors, whichever its first bytes show; tensors on the CPU.

    Pickles are read with `weights_only=True`. `argparse.Namespace`, which holds the options in DeiT's files, is data
    and comes through.

    Raises:
        OSError: the file cannot be opened.
        CheckpointFileError: it is another kind of file, damaged, or holds more than tensors and plain values.
    """
    with open(path, "rb") as file:
        head = file.read(HEAD)
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < LONGEST_HEADER:
        return _read_safetensors(path)
    if head.startswith(b"PK"):
        _check_archive(path)
    elif not head.startswith(b"\x80"):  # a pickle, as torch.save wrote before PyTorch 1.6
        raise CheckpointFileError(_describe_other(head))
    try:
        # an open file, since torch.load takes a path for safetensors by its suffix
        with open(path, "rb") as file, torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken file fails in as many ways as there are places to break it
        # without its cause, which advises to load without safety
        raise CheckpointFileError(_describe_refusal(error)) from None


def state_dict_of(content: Any, *, use_ema: bool, branch: str = "teacher") -> dict[str, Tensor]:
    """The weights in a checkpoint's content, where `timm.models.load_state_dict` finds them, under timm's names.

    Of self-supervised training, the official DINO's or `dino.py`'s, the backbone of `branch`, "teacher" or "student".

    Raises:
        CheckpointFileError: the content has no names.
    """
    if (backbone := find_branch(content, branch)) is not None:
        return backbone
    if isinstance(content, dict):
        averaged = ("state_dict_ema", "model_ema") if use_ema else ()
        keys = [*(key for key in averaged if content.get(key) is not None), "state_dict", "model"]
        content = next((content[key] for key in keys if key in content), content)
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise CheckpointFileError(f"expected weights by name, it holds {type(content).__name__} without names")
    return clean_state_dict(content)


def find_branch(content: Any, branch: str) -> dict[str, Tensor] | None:
    """The backbone's weights of a branch, "teacher" or "student", in a checkpoint's content; None without both."""
    if branch not in BRANCHES:
        raise ValueError(f"branch must be one of {', '.join(BRANCHES)}, got {branch!r}")
    if not isinstance(content, dict):
        return None
    model = content.get("model", content)
    if all(isinstance(content.get(name), dict) for name in BRANCHES):
        weights = clean_state_dict(content[branch])
    elif isinstance(model, dict) and set(BRANCHES) <= {str(name).partition(".")[0] for name in model}:
        start = f"{branch}."
        weights = {name[len(start) :]: tensor for name, tensor in model.items() if name.startswith(start)}
    else:
        return None
    start = "backbone."
    return {name[len(start) :]: tensor for name, tensor in weights.items() if name.startswith(start)}


def _read_safetensors(path: str | Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        raise CheckpointFileError(f"a safetensors file, cut short or damaged: {error}") from error


def _check_archive(path: str | Path) -> None:
    """Refuse a zip archive that `torch.save` has not written."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile as error:
        raise CheckpointFileError(f"a zip archive, as torch.save writes, cut short or damaged: {error}") from error
    files = {name.rpartition("/")[2] for name in names}
    if "constants.pkl" in files:
        raise CheckpointFileError("a TorchScript program; save the state_dict() of its module")
    if "data.pkl" not in files:
        raise CheckpointFileError(f"a zip archive that torch.save has not written; it holds {', '.join(names[:3])}")


def _describe_other(head: bytes) -> str:
    if not head:
        return "the file is empty"
    start = head.lstrip().lower()
    for signature, kind in SIGNATURES:
        if start.startswith(signature.lower()):
            return kind
    if head[257:262] == b"ustar":
        return "a tar; unpack it"
    return f"neither a file of torch.save nor of safetensors, by its first bytes {head[:16]!r}"


def _describe_refusal(error: Exception) -> str:
    """The reason alone, from PyTorch's message."""
    if found := re.search(r"(?:GLOBAL|[Uu]nsupported class) ([\w.]+)", str(error)):
        return (
            f"it refers to {found[1]}, and whatever is no tensor or plain value is refused, since loading it can run "
            "code; have it saved again as a state_dict()"
        )
    if "weights_only" in str(error):
        return "a pickle that is damaged or no checkpoint"
    return f"cut short or damaged: {str(error).partition(chr(10))[0]}"
