"""Checkpoints on disk: atomic, safe to read, and told apart from what is none."""

import argparse
import json
import os
import pickle
from functools import partial
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch

from training.checkpoint import atomic_write, load_weights, peek_checkpoint, read_run, save_checkpoint
from training.errors import CheckpointError


def test_a_failure_while_writing_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "last.pth"
    save_checkpoint(str(path), {"model": {"w": torch.ones(3)}})
    before = path.read_bytes()

    class Unpicklable:
        def __reduce__(self):
            raise RuntimeError("in the middle of it")

    with pytest.raises(CheckpointError, match=r"cannot write .*last.pth: in the middle of it"):
        save_checkpoint(str(path), {"model": torch.ones(10_000), "late": Unpicklable()})
    assert path.read_bytes() == before

    def full_disk(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(CheckpointError, match=r"cannot write .*last.pth: .*No space left on device"):
        save_checkpoint(str(path), {"model": {}})
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["last.pth"]


def test_a_reader_sees_the_old_file_until_the_new_one_is_complete(tmp_path):
    path = tmp_path / "summary.csv"
    path.write_bytes(b"old")
    with atomic_write(str(path)) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"


def test_no_code_is_executed(tmp_path):
    class Attack:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "attacked"),)

    path = tmp_path / "evil.pth"
    torch.save({"model": Attack()}, path)
    with pytest.raises(CheckpointError, match=r"evil.pth cannot be read as a checkpoint"):
        load_weights(timm.create_model("test_resnet"), str(path))
    path.write_bytes(pickle.dumps(Attack(), protocol=2))
    with pytest.raises(CheckpointError, match=r"evil.pth cannot be read as a checkpoint"):
        read_run(str(path), "classification")
    assert not (tmp_path / "attacked").exists()


@pytest.mark.parametrize("wrapper", ["model", "state_dict", None])
def test_weights_of_other_programs_are_read(tmp_path, wrapper):
    source, target = timm.create_model("test_resnet"), timm.create_model("test_resnet")
    weights = source.state_dict()
    torch.save({wrapper: weights} if wrapper else weights, tmp_path / "weights.pth")
    load_weights(target, str(tmp_path / "weights.pth"))
    assert all(torch.equal(tensor, weights[name]) for name, tensor in target.state_dict().items())


def test_a_new_number_of_classes_keeps_the_fresh_classifier(tmp_path):
    source, target = (timm.create_model("container_tiny", num_classes=classes) for classes in (10, 3))
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=r"(?s)weights.pth does not fit Container: .*mismatch for head.fc.weight"):
        load_weights(target, str(tmp_path / "weights.pth"))
    fresh = target.get_classifier().weight.clone()
    load_weights(target, str(tmp_path / "weights.pth"), new_classes=True)
    assert torch.equal(target.get_classifier().weight, fresh)
    assert torch.equal(target.norm.weight, source.norm.weight)


def test_files_that_are_no_run_are_named(tmp_path):
    torch.save({"model": {}}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"other.pth is not a checkpoint of this trainer"):
        read_run(str(tmp_path / "other.pth"), "classification")
    save_checkpoint(str(tmp_path / "best.pth"), {"model": {}})
    with pytest.raises(CheckpointError, match=r"best.pth holds weights only; continue a run from its last.pth"):
        read_run(str(tmp_path / "best.pth"), "classification")
    with pytest.raises(CheckpointError, match=r"other.pth does not fit ResNet"):
        load_weights(timm.create_model("test_resnet"), str(tmp_path / "other.pth"))


def test_the_release_is_fine_tuned_on_other_classes(tmp_path):
    shapes = json.loads((Path(__file__).parents[1] / "golden" / "container_light_official_names.json").read_text())
    released = {name: torch.full(shape, 0.5) for name, shape in shapes.items()}
    torch.save({"model": released}, tmp_path / "released.pth")
    model = timm.create_model("container_light", num_classes=10)
    load_weights(model, str(tmp_path / "released.pth"), new_classes=True)
    assert torch.equal(model.norm.weight, torch.full((512,), 0.5))
    assert not torch.equal(model.get_classifier().weight, torch.full((10, 512), 0.5))


READERS = (
    partial(read_run, task="classification"),
    peek_checkpoint,
    lambda path: load_weights(timm.create_model("test_resnet"), path),
)


@pytest.mark.parametrize("read", READERS, ids=["read_run", "peek_checkpoint", "load_weights"])
def test_every_program_reads_by_the_same_rules(tmp_path, read):
    weights = timm.create_model("test_resnet").state_dict()
    safetensors.torch.save_file(weights, tmp_path / "weights.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "weights.safetensors").read_bytes()[:5000])
    (tmp_path / "page.pth").write_text("<!DOCTYPE html>")
    (tmp_path / "empty.pth").write_bytes(b"")
    torch.save(torch.nn.ReLU(), tmp_path / "module.pth")
    for name, reason in (
        ("cut.safetensors", "a safetensors file, cut short or damaged"),
        ("page.pth", "an HTML page"),
        ("empty.pth", "the file is empty"),
        ("module.pth", r"it refers to torch.nn.modules.activation.ReLU"),
    ):
        with pytest.raises(CheckpointError, match=rf"{name} cannot be read as a checkpoint: {reason}"):
            read(str(tmp_path / name))


def test_options_beside_the_weights_and_safetensors_of_any_name_are_read(tmp_path):
    weights = timm.create_model("test_resnet").state_dict()
    torch.save({"model": weights, "args": argparse.Namespace(lr=1)}, tmp_path / "deit.pth")
    safetensors.torch.save_file(weights, tmp_path / "safe.pth")
    for name in ("deit.pth", "safe.pth"):
        assert peek_checkpoint(str(tmp_path / name)) == {}
        load_weights(target := timm.create_model("test_resnet"), str(tmp_path / name))
        assert all(torch.equal(tensor, weights[key]) for key, tensor in target.state_dict().items())
