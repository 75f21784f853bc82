"""Weights of a tensor class of their own, as quantization makes them: what plain layers can do, ours can."""

import copy

import pytest
import torch
import torch.nn.functional as F
from tiny_networks import tiny, trained
from torch import nn

import container_kernels
from container_kernels import ContainerBlock, use_backend
from container_kernels.ops.dispatch.backend import recorded_choices
from container_kernels.testing import MixCase


class Halved(torch.Tensor):
    """A tensor kept as its half. PyTorch's operators see the whole of it, and `F.linear` is counted; it knows no other
    operators."""

    linear_calls = 0

    @staticmethod
    def __new__(cls, half):
        return torch.Tensor._make_wrapper_subclass(
            cls, half.shape, half.stride(), half.storage_offset(), dtype=half.dtype, device=half.device
        )

    def __init__(self, half):
        self.half_of_it = half

    def __tensor_flatten__(self):
        return ["half_of_it"], None

    @staticmethod
    def __tensor_unflatten__(tensors, context, size, stride):
        return Halved(tensors["half_of_it"])

    def __repr__(self):  # while a program is traced too, where there are no numbers to show
        return f"Halved({tuple(self.shape)})"

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is F.linear:
            Halved.linear_calls += 1
        with torch._C.DisableTorchFunctionSubclass():  # results are plain
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.detach.default:
            return Halved(args[0].half_of_it)
        if func.namespace != "aten":
            raise NotImplementedError(f"{func} of {cls.__name__}")
        whole = torch.utils._pytree.tree_map_only(Halved, lambda tensor: 2 * tensor.half_of_it, (args, kwargs or {}))
        return func(*whole[0], **whole[1])


def halved(tensor):
    return Halved(tensor.detach() / 2)


def halve_linear_layers(model):
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.weight = nn.Parameter(halved(module.weight), requires_grad=False)
    return model


def image(*shape):
    return torch.randn(shape).to(memory_format=torch.channels_last)


def calls():
    """By name of the argument that can be of another class, an op and all its arguments."""
    x, channels, hidden = torch.randn(2, 3, 4, 6), 6, 10
    linear = {"x": x, "weight": torch.randn(5, channels), "bias": torch.randn(5)}
    branch = {"residual": torch.randn(2, 3, 4, 5), "sample_scale": torch.rand(2)}
    mlp = {
        "x": x, "w1": torch.randn(hidden, channels), "b1": torch.randn(hidden),
        "w2": torch.randn(channels, hidden), "b2": torch.randn(channels), "sample_scale": torch.rand(2),
    }  # fmt: skip
    local = {"x": x, "weight": torch.randn(channels, 3, 3), "bias": torch.randn(channels)}
    qkv, mix = MixCase(height=3, width=4, heads=2, head_dim=4, dense=True, packed=False).make(torch.float32).arguments()
    mix = {**dict(zip("qkv", qkv, strict=True)), **mix}
    arguments = {
        "projection": linear | branch, "projection_with_moments": linear | branch, "fused_mlp": mlp,
        "local_aggregation": local, "local_aggregation_with_moments": local, "context_aggregation": mix,
    }  # fmt: skip
    return [
        pytest.param(op, given, name, id=f"{op}-{name}")
        for op, given in arguments.items()
        for name, value in given.items()
        if isinstance(value, torch.Tensor)
    ]


@pytest.mark.parametrize(("op", "arguments", "name"), calls())
def test_every_tensor_of_a_call_is_looked_at(op, arguments, name):
    function = getattr(container_kernels, op)
    changed = arguments | {name: halved(arguments[name])}
    torch.testing.assert_close(function(**changed), function(**arguments))
    with pytest.raises(RuntimeError, match="'cpu' cannot serve this call: tensors of class Halved need plain PyTorch"):
        function(**changed, backend="cpu")


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_a_block_calls_its_quantized_layers(training):
    block = trained(ContainerBlock(16, 2)).train(training)
    x = image(2, 16, 5, 6)
    with use_backend("reference"):
        expected = copy.deepcopy(block)(x)
    assert block.why_not_fused() is None
    halve_linear_layers(block)
    Halved.linear_calls = 0
    with recorded_choices() as made:
        torch.testing.assert_close(block(x), expected)
    assert Halved.linear_calls == 4
    assert [(choice.op, choice.backend) for choice in made] == [
        ("local_aggregation", "cpu"), ("context_aggregation", "cpu"),
    ]  # fmt: skip
    assert "in_proj has a weight of class Halved" in block.why_not_fused()
    assert "fc2 has a weight of class Halved" in block.why_not_fused()


@pytest.mark.parametrize("part", ["norm1.weight", "norm2.running_mean", "pos_embed.weight", "aggregation.local_weight"])
def test_a_block_calls_whatever_layer_is_quantized(part):
    """In evaluation and, where filters and norms become constants, after `fuse()`."""
    block = trained(ContainerBlock(16, 2)).eval()
    x = image(2, 16, 5, 6)
    with use_backend("reference"):
        expected = block(x)
    path, name = part.rsplit(".", 1)
    layer = block.get_submodule(path)
    tensor = halved(getattr(layer, name))
    setattr(layer, name, nn.Parameter(tensor, requires_grad=False) if name in layer._parameters else tensor)
    assert f"has a {name} of class Halved" in block.why_not_fused()
    torch.testing.assert_close(block(x), expected)
    torch.testing.assert_close(block.fuse()(x), expected)


@pytest.mark.parametrize("name", ["container", "deit_small", "mixer"])
def test_networks(name, fresh_compiler):
    model = trained(tiny(name)).eval()
    x = image(2, 3, 32, 32)
    expected = model(x)
    quantized = halve_linear_layers(model)
    torch.testing.assert_close(quantized(x), expected)
    compiled = torch.compile(quantized, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), expected)
    torch.testing.assert_close(quantized.fuse()(x), expected)


@pytest.mark.parametrize("name", ["container", "deit_small"])
@pytest.mark.parametrize("config", ["Int8WeightOnlyConfig", "Int8DynamicActivationInt8WeightConfig"])
def test_torchao(name, config):
    quantization = pytest.importorskip("torchao.quantization")
    model = trained(tiny(name)).eval()
    x = image(2, 3, 32, 32)
    with torch.no_grad():
        expected = model(x)
        quantization.quantize_(model, getattr(quantization, config)())
        error = (model(x) - expected).norm() / expected.norm()
    assert 0 < error < 0.05
