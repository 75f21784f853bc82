"""Weights of timm's DeiT and MLP-Mixer load by their own names, and our networks then compute what timm's do."""

import argparse

import pytest
import timm
import torch
from timm.models.mlp_mixer import MlpMixer
from timm.models.vision_transformer import VisionTransformer
from tiny_networks import trained

from container_kernels import use_backend
from container_kernels.models import load_checkpoint
from container_kernels.models.key_mapping import translated

SMALL = {"img_size": 32, "patch_size": 4, "num_classes": 10}
DEIT = {"embed_dim": 48, "num_heads": 3, "depth": 2}
PATCHES = {"class_token": False, "global_pool": "avg", "qkv_bias": False}
# Our name and arguments, timm's class and arguments.
NETWORKS = {
    "deit_tiny": (DEIT, VisionTransformer, DEIT),
    "deit_small": (
        {**DEIT, **PATCHES, "pos_embed": False},
        VisionTransformer, {**DEIT, **PATCHES, "pos_embed": "", "fc_norm": False},
    ),
    "mixer": ({"embed_dim": 48, "depth": 2, "hidden_tokens": 24}, MlpMixer, {"embed_dim": 48, "num_blocks": 2}),
}  # fmt: skip


def pair(network, dtype=torch.float64, **arguments):
    """timm's network with random weights, and ours as it starts."""
    own, kind, others = NETWORKS[network]
    theirs = trained(kind(**{**SMALL, **others})).to(dtype)
    return theirs, timm.create_model(network, **{**SMALL, **own, **arguments}).to(dtype)


def relative_error(actual, expected):
    return ((actual - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("network", NETWORKS)
def test_equals_timm(network, dtype, tolerance, backend):
    """Logits, and the gradients of a loss."""
    theirs, ours = pair(network, dtype)
    result = ours.load_state_dict(theirs.state_dict())
    assert not result.missing_keys and not result.unexpected_keys
    x, labels = torch.randn(2, 3, 32, 32, dtype=dtype), torch.tensor([3, 7])
    with use_backend(backend):
        logits = ours(x)
        torch.nn.functional.cross_entropy(logits, labels).backward()
    expected = theirs(x)
    torch.nn.functional.cross_entropy(expected, labels).backward()
    assert relative_error(logits, expected) < tolerance
    gradients = translated({name: parameter.grad for name, parameter in theirs.named_parameters()})
    assert gradients.keys() == dict(ours.named_parameters()).keys()
    largest = max(gradient.abs().max() for gradient in gradients.values())
    for name, parameter in ours.named_parameters():
        # Biases that a norm or a softmax removes have gradient zero, and are rounding noise in both.
        error = (parameter.grad - gradients[name]).abs().max()
        assert error <= 10 * tolerance * gradients[name].abs().max() + tolerance * largest, name


@torch.no_grad()
@pytest.mark.parametrize("network", NETWORKS)
def test_features_equal_timm(network):
    theirs, ours = pair(network)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(ours.forward_features(x), theirs.forward_features(x), rtol=1e-10, atol=1e-10)
    for options in ({}, {"norm": True, "output_fmt": "NLC"}):
        (final, ours_all), (expected, theirs_all) = (m.forward_intermediates(x, **options) for m in (ours, theirs))
        torch.testing.assert_close([final, *ours_all], [expected, *theirs_all], rtol=1e-10, atol=1e-10)


@torch.no_grad()
@pytest.mark.parametrize(("network", "theirs"), [("deit_small", "deit_small_patch16_224"), ("mixer", "mixer_b16_224")])
def test_full_size(network, theirs):
    theirs = trained(timm.create_model(theirs)).eval()
    ours = timm.create_model(network, device="meta").eval()
    ours.load_state_dict(theirs.state_dict(), assign=True)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    x = torch.randn(1, 3, 224, 224)
    assert relative_error(ours(x), theirs(x)) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("wrapper", [None, "model"])
@pytest.mark.parametrize("network", ["deit_tiny", "mixer"])
def test_every_door(network, wrapper, tmp_path):
    """A file of timm's, or of the release of DeiT, which keeps its arguments beside "model"."""
    theirs, by_function = pair(network, torch.float32)
    path, x = tmp_path / "weights.pth", torch.randn(2, 3, 32, 32)
    weights = theirs.state_dict()
    torch.save({wrapper: weights, "args": argparse.Namespace(lr=1), "epoch": 1} if wrapper else weights, path)

    def make(**arguments):
        return pair(network, torch.float32, **arguments)[1]

    result = load_checkpoint(by_function, path)
    assert not result.missing_keys and not result.unexpected_keys
    overlay = {"pretrained": True, "pretrained_cfg_overlay": {"file": str(path), "num_classes": 10}}
    inside = torch.nn.Sequential(make())
    inside.load_state_dict({f"0.{name}": tensor for name, tensor in weights.items()})
    for model in (by_function, make(checkpoint_path=str(path)), make(**overlay), inside):
        assert relative_error(model(x), theirs(x)) < 1e-5
    # timm leaves a head of another size out and adapts the first convolution.
    features = theirs.forward_features(x)
    assert relative_error(make(**{**overlay, "num_classes": 3}).forward_features(x), features) < 1e-5
    gray = make(in_chans=1, **overlay).patch_embed.proj.weight
    torch.testing.assert_close(gray, by_function.patch_embed.proj.weight.sum(1, keepdim=True))
    backbone = make(features_only=True, out_indices=[0], **overlay)
    assert relative_error(backbone(x)[0], theirs.forward_intermediates(x, indices=[0])[1][0]) < 1e-5


def test_pam_starts_from_deit():
    theirs, _ = pair("deit_tiny")
    model = timm.create_model("container_pam", **SMALL, **DEIT).double()
    result = model.load_state_dict(theirs.state_dict(), strict=False)
    own = ("affinity", "alpha", "beta")
    assert set(result.missing_keys) == {f"blocks.{i}.aggregation.{name}" for i in range(2) for name in own}
    assert not result.unexpected_keys
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        for block in model.blocks:
            block.aggregation.alpha.fill_(1)
            block.aggregation.beta.zero_()
        assert relative_error(model(x), theirs(x)) < 1e-10


def test_weights_of_another_network(tmp_path):
    theirs, _ = pair("mixer")
    torch.save(theirs.state_dict(), tmp_path / "mixer.pth")
    for other in (pair("deit_tiny")[1], timm.create_model("container_tiny")):
        with pytest.raises(RuntimeError, match="Missing key"):
            load_checkpoint(other, tmp_path / "mixer.pth")
    heads = timm.create_model("mh_mixer", **SMALL, **NETWORKS["mixer"][0])
    with pytest.raises(RuntimeError, match=r"size mismatch for blocks\.0\.aggregation\.token_mlp\.w1"):
        load_checkpoint(heads, tmp_path / "mixer.pth")
