"""Files of weights are told apart by their bytes, and what is none is said to be what it is."""

import argparse
import io
import pickle
import re
import traceback
import zipfile

import numpy
import pytest
import safetensors.torch
import torch

from container_kernels.models.checkpoint_file import CheckpointFileError, read_checkpoint_file, state_dict_of

WEIGHTS = {"weight": torch.arange(600.0).view(20, 30), "bias": torch.ones(3)}


def saved(content, **how) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **how)
    return file.getvalue()


def zipped(**files) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return file.getvalue()


def array() -> bytes:
    file = io.BytesIO()
    numpy.save(file, numpy.ones(3))
    return file.getvalue()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".bin"])
@pytest.mark.parametrize(
    "content",
    [saved(WEIGHTS), saved(WEIGHTS, _use_new_zipfile_serialization=False), safetensors.torch.save(WEIGHTS)],
    ids=["zip", "legacy", "safetensors"],
)
def test_the_bytes_decide_and_not_the_suffix(tmp_path, content, suffix):
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    read = read_checkpoint_file(path)
    assert read.keys() == WEIGHTS.keys() and all(torch.equal(read[name], WEIGHTS[name]) for name in WEIGHTS)


OTHER_FILES = {
    "empty": (b"", "the file is empty"),
    "page": (b"\n<!DOCTYPE html>\n<html>", "an HTML page in place of the file; download it again"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid", "a Git LFS pointer in place of the file"),
    "json": (b'{"error": "not found"}', "a JSON text"),
    "gzip": (b"\x1f\x8b\x08", "compressed by gzip; unpack it"),
    "keras": (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    "array": (array(), "a NumPy array"),
    "tar": (b"weights/".ljust(257, b"\0") + b"ustar", "a tar; unpack it"),
    "text": (b"not a checkpoint", "neither .* by its first bytes b'not a checkpoint'"),
    "archive": (zipped(**{"word/document.xml": "<a>"}), r"torch.save has not written; it holds word/document.xml"),
    "script": (zipped(**{"m/data.pkl": "", "m/constants.pkl": ""}), "a TorchScript program"),
    "cut zip": (saved(WEIGHTS)[:500], r"a zip archive, as torch.save writes, cut short or damaged"),
    "cut legacy": (saved(WEIGHTS, _use_new_zipfile_serialization=False)[:-100], "cut short or damaged"),
    "cut safetensors": (safetensors.torch.save(WEIGHTS)[:1000], "a safetensors file, cut short or damaged"),
    "module": (saved(torch.nn.Linear(2, 2)), r"it refers to torch.nn.modules.linear.Linear, "),
    "legacy module": (
        saved(torch.nn.Linear(2, 2), _use_new_zipfile_serialization=False),
        r"it refers to torch.nn.modules.linear.Linear, ",
    ),
    "inner module": (saved({"model": torch.nn.ReLU()}), r"it refers to torch.nn.modules.activation.ReLU, "),
    "plain pickle": (
        pickle.dumps(WEIGHTS, protocol=2),
        r"it refers to torch.storage._load_from_bytes, ",
    ),
    "number": (saved({"best": numpy.float64(1)}), r"it refers to numpy\S*.multiarray.scalar, "),
}


@pytest.mark.parametrize("kind", OTHER_FILES)
def test_other_files_are_named_and_no_unsafe_way_is_advised(tmp_path, kind):
    content, message = OTHER_FILES[kind]
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointFileError, match=message) as error:
        read_checkpoint_file(path)
    assert not re.search(r"\x1b|\n", str(error.value))
    assert not re.search(
        r"trust|add_safe_globals|weights_only.*False", "".join(traceback.format_exception(error.value))
    )


@pytest.mark.parametrize("content", [saved(WEIGHTS), safetensors.torch.save(WEIGHTS)], ids=["zip", "safetensors"])
def test_every_cut_is_an_error(tmp_path, content):
    path = tmp_path / "weights.pth"
    for length in range(0, len(content), 37):
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointFileError):
            read_checkpoint_file(path)


def test_a_namespace_is_data(tmp_path):
    torch.save({"model": WEIGHTS, "args": argparse.Namespace(lr=0.1, betas=(0.9, 0.99))}, tmp_path / "deit.pth")
    content = read_checkpoint_file(tmp_path / "deit.pth")
    assert content["args"] == argparse.Namespace(lr=0.1, betas=(0.9, 0.99))
    assert state_dict_of(content, use_ema=False).keys() == WEIGHTS.keys()


def test_weights_are_found_where_programs_put_them():
    def chosen(use_ema, **content):
        return state_dict_of({name: value and {"w": value} for name, value in content.items()}, use_ema=use_ema)["w"]

    assert chosen(True, model=1, model_ema=2) == chosen(True, model=1, state_dict=3, state_dict_ema=2) == 2
    assert chosen(False, model=1, model_ema=2) == chosen(True, model=1, model_ema=None) == 1
    assert chosen(False, model=1, state_dict=3) == 3
    assert state_dict_of({"_orig_mod.module.w": 1, "head.w": 2}, use_ema=True) == {"w": 1, "head.w": 2}
    for content in ([1, 2], {"model": [1]}, {1: 2}):
        with pytest.raises(CheckpointFileError, match=r"expected weights by name, it holds (list|dict) without names"):
            state_dict_of(content, use_ema=True)
