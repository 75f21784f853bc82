"""Loading weights: the release's names and ours, every door, and never any pickled code."""

import argparse
import os
import traceback

import pytest
import safetensors.torch
import timm
import torch
from released import released_state_dict

from container_kernels.models import load_checkpoint


@pytest.fixture(scope="module")
def released():
    return released_state_dict()


def check_filled(model, released):
    """A few tensors of every kind came through, reshaped."""
    own = model.state_dict()
    pairs = {
        "stages.0.downsample.proj.weight": released["patch_embed1.proj.weight"],
        "stages.1.blocks.2.aggregation.in_proj.weight": released["blocks2.2.conv1.weight"].flatten(1),
        "stages.2.blocks.7.aggregation.local_weight": released["blocks3.7.attn.weight"].squeeze(1),
        "stages.3.blocks.1.aggregation.local_bias": released["blocks4.1.conv.bias"],
        "stages.3.blocks.2.aggregation.gate": released["blocks4.2.sa_weight"],
        "stages.3.blocks.2.aggregation.out_proj.bias": released["blocks4.2.conv2.bias"],
        "stages.3.blocks.0.mlp.fc1.weight": released["blocks4.0.mlp.fc1.weight"].flatten(1),
        "stages.0.blocks.0.pos_embed.weight": released["blocks1.0.pos_embed.weight"].squeeze(1),
        "norm.running_var": released["norm.running_var"],
    }
    for name, value in pairs.items():
        assert torch.equal(own[name], value), name


@pytest.mark.parametrize("wrapper", [None, "model", "state_dict"])
def test_released_file(tmp_path, released, wrapper):
    path = tmp_path / "released.pth"
    # The release saves its argparse.Namespace beside the weights.
    torch.save({wrapper: released, "args": argparse.Namespace(lr=1)} if wrapper else released, path)
    model = timm.create_model("container_light")
    result = load_checkpoint(model, path)
    assert not result.missing_keys and not result.unexpected_keys
    check_filled(model, released)
    assert torch.equal(model.head.fc.weight, released["head.weight"])


def test_through_timm(tmp_path, released):
    path = tmp_path / "released.pth"
    torch.save({"model": released}, path)
    overlay = {"pretrained": True, "pretrained_cfg_overlay": {"file": str(path)}}
    model = timm.create_model("container_light", **overlay)
    check_filled(model, released)
    assert torch.equal(model.head.fc.weight, released["head.weight"])
    # timm drops a head of another size and adapts the first convolution.
    model = timm.create_model("container_light", num_classes=10, **overlay)
    check_filled(model, released)
    model = timm.create_model("container_light", in_chans=1, **overlay)
    torch.testing.assert_close(
        model.stages[0].downsample.proj.weight, released["patch_embed1.proj.weight"].sum(1, keepdim=True)
    )
    check_filled(timm.create_model("container_light", checkpoint_path=str(path)), released)


def test_features_only_through_timm(tmp_path, released):
    path = tmp_path / "released.pth"
    torch.save(released, path)
    backbone = timm.create_model(
        "container_light", features_only=True, pretrained=True, pretrained_cfg_overlay={"file": str(path)}
    )
    assert torch.equal(backbone.state_dict()["stages_3.blocks.0.aggregation.gate"], released["blocks4.0.sa_weight"])


def test_load_state_dict_takes_either_naming(released):
    model = timm.create_model("container_light")
    model.load_state_dict(released)
    check_filled(model, released)
    wrapped = torch.nn.Sequential(timm.create_model("container_light"))
    wrapped.load_state_dict({f"0.{name}": value for name, value in released.items()})
    check_filled(wrapped[0], released)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_own_file(tmp_path, suffix):
    source, target = (timm.create_model("container_tiny", num_classes=4) for _ in range(2))
    path = tmp_path / f"own{suffix}"
    if suffix == ".pth":
        torch.save(source.state_dict(), path)
    else:
        safetensors.torch.save_file(source.state_dict(), path)
    load_checkpoint(target, path)
    for name, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[name], value)


def test_averaged_weights_as_timm_takes_them(tmp_path):
    model = timm.create_model("container_tiny", num_classes=4)
    averaged = {name: value * 0 for name, value in model.state_dict().items()}
    torch.save({"state_dict": model.state_dict(), "state_dict_ema": averaged}, tmp_path / "ema.pth")
    before = model.head.fc.weight.detach().clone()
    load_checkpoint(model, tmp_path / "ema.pth", use_ema=False)
    assert torch.equal(model.head.fc.weight, before)
    load_checkpoint(model, tmp_path / "ema.pth")
    assert not model.head.fc.weight.count_nonzero()


class Exploit:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_pickled_code_is_not_executed(tmp_path):
    target = tmp_path / "executed"
    torch.save({"model": Exploit(target)}, tmp_path / "bad.pth")
    with pytest.raises(RuntimeError, match=r"bad.pth cannot be read as one: it refers to posix.mkdir, ") as error:
        load_checkpoint(timm.create_model("container_tiny"), tmp_path / "bad.pth")
    assert "trusted" not in "".join(traceback.format_exception(error.value))
    assert not target.exists()


def test_missing_file(tmp_path):
    for path in (tmp_path / "nothing.pth", tmp_path):
        with pytest.raises(
            FileNotFoundError, match=f"path: expected a checkpoint file, got {path}, which is not a file"
        ):
            load_checkpoint(timm.create_model("container_tiny"), path)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", "list"])
def test_broken_file(tmp_path, content):
    path = tmp_path / "broken.pth"
    if content == "list":
        torch.save([1, 2], path)
    else:
        path.write_bytes(content)
    with pytest.raises(RuntimeError, match=r"path: expected a checkpoint, but .*broken.pth cannot be read as one"):
        load_checkpoint(timm.create_model("container_tiny"), path)


def test_wrong_network(tmp_path):
    torch.save(timm.create_model("container_tiny").state_dict(), tmp_path / "tiny.pth")
    with pytest.raises(RuntimeError, match="size mismatch"):
        load_checkpoint(timm.create_model("container_light"), tmp_path / "tiny.pth")
