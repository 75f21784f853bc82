"""Inputs of the layers: those the network gives them, and a network left as it was."""

import pytest
import timm
import torch
from torch import nn

from container_kernels.analysis import aggregation_layers, layer_inputs
from container_kernels.modules.fusible import has_hooks


@pytest.fixture(scope="module")
def network():
    """container_tiny in training mode but for one norm, after a step: its statistics are not the initial ones."""
    model = timm.create_model("container_tiny", num_classes=3).train()
    model(torch.randn(8, 3, 32, 32))
    model.stages[1].blocks[0].norm1.eval()
    return model


def test_they_are_what_each_layer_gets(network):
    images = torch.randn(2, 3, 32, 32)
    output, inputs = layer_inputs(network, images)
    layers = aggregation_layers(network)
    assert list(inputs) == list(layers)
    assert not output.requires_grad and not any(x.requires_grad for x in inputs.values())
    assert list(layers)[:2] == ["stages.0.blocks.0.aggregation", "stages.1.blocks.0.aggregation"] and len(layers) == 5
    block = network.stages[0].blocks[0].eval()
    expected = block.norm1(block.pos_embed(network.stages[0].downsample(images)))
    torch.testing.assert_close(inputs["stages.0.blocks.0.aggregation"], expected)
    network.stages[0].blocks[0].train()
    modes = [module.training for module in network.modules()]
    torch.testing.assert_close(output, network.eval()(images))  # fused there, by layers here
    for module, mode in zip(network.modules(), modes, strict=True):
        module.training = mode


def test_the_network_is_left_as_it_was(network):
    before = [module.training for module in network.modules()]
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    assert True in before and False in before
    layer_inputs(network, torch.randn(1, 3, 32, 32))
    with pytest.raises(ValueError, match="expected at least"):
        layer_inputs(network, torch.randn(1, 3, 1, 1))
    assert [module.training for module in network.modules()] == before
    assert not any(has_hooks(module) for module in network.modules())
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())


def test_networks_without_such_layers_are_refused():
    with pytest.raises(ValueError, match="model: expected a network that is not fused, got one after fuse"):
        layer_inputs(timm.create_model("container_tiny").fuse(), torch.randn(1, 3, 32, 32))
    with pytest.raises(ValueError, match="model: expected a network with ContextAggregation layers, got Linear"):
        aggregation_layers(nn.Linear(3, 3))
