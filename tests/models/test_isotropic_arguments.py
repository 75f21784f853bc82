"""Every argument of an isotropic network reaches its place, and what timm knows of the network is right."""

import pytest
import timm
import torch
from tiny_networks import ISOTROPIC, tiny, trained
from torch import nn

from container_kernels import ContextAggregation


def test_settings_reach_the_blocks():
    gated = tiny("container_pam", mixing="gate").blocks[0].aggregation
    assert hasattr(gated, "gate") and not hasattr(gated, "alpha")
    model = tiny("deit_small", act_layer=nn.SiLU, qkv_bias=False, proj_drop_rate=0.25, mlp_ratio=3)
    for block in model.blocks:
        assert isinstance(block.mlp.act, nn.SiLU) and block.mlp.fc1.out_features == 72
        assert block.aggregation.in_proj.bias is None
        assert block.aggregation.proj_drop.p == block.mlp.drop1.p == 0.25


def test_dropout_before_the_classifier_drops():
    model = trained(tiny("mixer", drop_rate=0.999)).train()
    nn.init.zeros_(model.head.bias)
    assert (model(torch.randn(4, 3, 32, 32)) == 0).float().mean() > 0.5
    assert (model.eval()(torch.randn(4, 3, 32, 32)) != 0).all()


def test_a_layer_made_without_memory_gets_its_initial_values():
    """`to_empty` and `reset_parameters`, as FSDP builds networks."""
    layer = ContextAggregation(16, 2, dynamic=False, static="dense", grid_size=(3, 3), hidden_tokens=4, device="meta")
    layer.to_empty(device="cpu")
    for parameter in layer.parameters():
        nn.init.constant_(parameter, torch.nan)
    layer.reset_parameters()
    assert all(parameter.isfinite().all() and parameter.std() > 0 for parameter in layer.parameters())


@pytest.mark.parametrize("name", ISOTROPIC)
def test_the_final_norm_learns_with_the_last_block(name):
    matcher = tiny(name).group_matcher()
    layers = timm.models.group_parameters(tiny(name), matcher, reverse=True)
    assert layers["norm.weight"] == layers["blocks.2.norm1.weight"] > layers["patch_embed.proj.weight"] == 0


def test_stopping_early_runs_no_more_blocks():
    model, calls = tiny("deit_small"), []
    for block in model.blocks:
        block.register_forward_hook(lambda *_: calls.append(1))
    model.forward_intermediates(torch.randn(1, 3, 32, 32), indices=[0], stop_early=True, intermediates_only=True)
    assert len(calls) == 1
    model.forward_intermediates(torch.randn(1, 3, 32, 32), indices=[0], intermediates_only=True)
    assert len(calls) == 1 + 3


@pytest.mark.parametrize("training", [True, False])
def test_a_new_classifier_is_as_the_network(training):
    model = tiny("deit_small").to(torch.bfloat16).train(training)
    model.reset_classifier(7)
    assert model.head.weight.dtype == torch.bfloat16 and model.head.training == training
    assert 0.01 < model.head.weight.float().std() < 0.03 and not model.head.bias.any()


@pytest.mark.parametrize("name", ["deit_tiny", *ISOTROPIC])
def test_what_timm_knows(name):
    config = timm.create_model(name, device="meta").pretrained_cfg
    half = (0.5, 0.5, 0.5)
    is_half = "mixer" in name  # as MLP-Mixer was trained
    assert (config["mean"] == half, config["std"] == half) == (is_half, is_half)
    assert config["fixed_input_size"] and config["input_size"] == (3, 224, 224) and config["crop_pct"] == 0.875
    assert (config["first_conv"], config["classifier"]) == ("patch_embed.proj", "head")


@pytest.mark.parametrize("name", ["deit_small", "container_pam", "mixer"])
def test_functional_transforms(name):
    """One sample after the other under `vmap`, and its gradient by sample, are those of the batch."""
    model = trained(tiny(name)).double().eval()
    x = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(torch.vmap(lambda image: model(image[None])[0])(x), model(x))
    parameters = {key: parameter.detach() for key, parameter in model.named_parameters()}

    def loss(parameters, image):
        return torch.func.functional_call(model, parameters, (image[None],)).square().sum()

    by_sample = torch.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
    together = torch.func.grad(lambda p: sum(loss(p, image) for image in x))(parameters)
    for key, gradient in together.items():
        torch.testing.assert_close(by_sample[key].sum(0), gradient, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("size", ["64", (64,), 64.0, True, (64, -1), 0])
@pytest.mark.parametrize("name", ["deit_small", "container_light"])
def test_what_is_no_size(name, size):
    with pytest.raises(ValueError, match="img_size: expected one positive integer or two, got"):
        tiny(name, img_size=size)
    with pytest.raises(ValueError, match="img_size: expected one positive integer or two, got"):
        tiny(name).set_input_size(size)
    with pytest.raises(ValueError, match="patch_size: expected one positive integer or two, got 0"):
        tiny("deit_small", patch_size=0)
