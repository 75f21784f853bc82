"""The layers: what they compute, in terms of PyTorch's own; their parameters; their errors."""

import math

import pytest
import torch
import torch.nn.functional as F

from container_kernels import ContainerBlock, ContextAggregation, LocalAggregation
from container_kernels.modules.linear import ChannelLinear


def linear(layer, tokens):
    return F.linear(tokens, layer.weight, layer.bias)


def attention_by_hand(layer, x):
    """Multi-head attention with the layer's projections, in plain PyTorch."""
    batch, _, height, width = x.shape
    packed = linear(layer.in_proj, x.flatten(2).transpose(1, 2))
    q, k, v = packed.view(batch, height * width, 3, layer.num_heads, layer.head_dim).permute(2, 0, 3, 1, 4)
    return (q @ k.transpose(-1, -2) / math.sqrt(layer.head_dim)).softmax(-1) @ v, v


def project(layer, heads, x):
    """(B, M, N, D) back to an image."""
    return linear(layer.out_proj, heads.transpose(1, 2).flatten(2)).transpose(1, 2).unflatten(2, x.shape[2:])


def depthwise(layer, v, x):
    image = v.transpose(2, 3).flatten(1, 2).unflatten(2, x.shape[2:])
    weight = layer.local_weight[:, None]
    out = F.conv2d(image, weight, layer.local_bias, padding=weight.shape[-1] // 2, groups=weight.shape[0])
    return out.flatten(2).unflatten(1, (layer.num_heads, layer.head_dim)).transpose(2, 3)


def test_gate_is_the_released_mix():
    layer = ContextAggregation(24, 3).double()
    torch.nn.init.normal_(layer.gate)
    x = torch.randn(2, 24, 4, 5, dtype=torch.float64)
    dynamic, v = attention_by_hand(layer, x)
    gate = torch.sigmoid(layer.gate)
    expected = project(layer, gate * dynamic + (1 - gate) * depthwise(layer, v, x), x)
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)


def test_free_mixing_is_the_papers_equation():
    layer = ContextAggregation(24, 3, mixing="free", kernel_size=3).double()
    torch.nn.init.normal_(layer.alpha)
    torch.nn.init.normal_(layer.beta)
    x = torch.randn(2, 24, 4, 5, dtype=torch.float64)
    dynamic, v = attention_by_hand(layer, x)
    expected = project(layer, layer.alpha * dynamic + layer.beta * depthwise(layer, v, x), x)
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)


def test_dynamic_alone_is_a_transformers_attention():
    layer = ContextAggregation(24, 3, static=None).double()
    x = torch.randn(2, 24, 4, 5, dtype=torch.float64)
    torch.testing.assert_close(layer(x), project(layer, attention_by_hand(layer, x)[0], x), rtol=1e-12, atol=1e-12)


def test_dense_alone_is_token_mixing():
    layer = ContextAggregation(8, 1, dynamic=False, static="dense", grid_size=(3, 4)).double()
    x = torch.randn(2, 8, 3, 4, dtype=torch.float64)
    values = linear(layer.in_proj, x.flatten(2).transpose(1, 2))
    expected = linear(layer.out_proj, layer.affinity[0] @ values).transpose(1, 2).unflatten(2, (3, 4))
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)


def test_local_alone_is_a_depthwise_convolution():
    layer = ContextAggregation(8, 2, dynamic=False).double()
    x = torch.randn(2, 8, 3, 4, dtype=torch.float64)
    values = linear(layer.in_proj, x.flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, (3, 4))
    local = F.conv2d(values, layer.local_weight[:, None], layer.local_bias, padding=2, groups=8)
    expected = linear(layer.out_proj, local.flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, (3, 4))
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mixing", ["gate", "free"])
@pytest.mark.parametrize("static", ["local", "dense", "both", None])
@pytest.mark.parametrize("dynamic", [True, False])
def test_every_setting_trains(dynamic, static, mixing):
    if not dynamic and static is None:
        pytest.skip("aggregates nothing: refused, see test_bad_arguments")
    layer = ContextAggregation(16, 2, dynamic=dynamic, static=static, mixing=mixing, grid_size=(4, 3))
    x = torch.randn(2, 16, 4, 3).to(memory_format=torch.channels_last).requires_grad_()
    y = layer(x)
    assert y.shape == x.shape and y.is_contiguous(memory_format=torch.channels_last)
    y.square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None and parameter.grad.count_nonzero(), name
    names = {name for name, _ in layer.named_parameters() if "proj" not in name}
    expected = {"local_weight", "local_bias"} if static in ("local", "both") else set()
    expected |= {"affinity"} if static in ("dense", "both") else set()
    if dynamic and static:
        expected |= {"gate"} if mixing == "gate" else {"alpha", "beta"}
    assert names == expected


def test_mixing_starts_at_one_half():
    for mixing in ("gate", "free"):
        assert [weight.item() for weight in ContextAggregation(8, 2, mixing=mixing).mixing_weights()] == [0.5, 0.5]
    assert ContextAggregation(8, 2, static=None).mixing_weights() == (1.0, 1.0)


def test_local_layer_equals_conv2d():
    layer = LocalAggregation(6, 3, residual=True)
    x = torch.randn(2, 6, 5, 4)
    expected = x + F.conv2d(x, layer.weight[:, None], layer.bias, padding=1, groups=6)
    torch.testing.assert_close(layer(x), expected)
    assert sum(p.numel() for p in LocalAggregation(6, 3, bias=False).parameters()) == 6 * 9


def test_block_is_three_residuals():
    block = ContainerBlock(24, 3).double().eval()
    x = torch.randn(2, 24, 6, 5, dtype=torch.float64)
    h = x + F.conv2d(x, block.pos_embed.weight[:, None], block.pos_embed.bias, padding=1, groups=24)
    h = h + block.aggregation(block.norm1(h))
    mlp = block.mlp
    hidden = F.gelu(F.conv2d(block.norm2(h), mlp.fc1.weight[..., None, None], mlp.fc1.bias))
    expected = h + F.conv2d(hidden, mlp.fc2.weight[..., None, None], mlp.fc2.bias)
    torch.testing.assert_close(block(x), expected, rtol=1e-12, atol=1e-12)


def test_block_takes_any_size_and_keeps_channels_last():
    block = ContainerBlock(16, 2, mlp_ratio=2.0, drop=0.1, drop_path=0.2)
    for height, width in ((1, 1), (3, 7), (14, 14)):
        x = torch.randn(2, 16, height, width).to(memory_format=torch.channels_last)
        y = block(x)
        assert y.shape == x.shape and y.is_contiguous(memory_format=torch.channels_last)


def test_block_passes_its_settings_on():
    block = ContainerBlock(16, 2, 3.0, static="both", grid_size=(2, 2), kernel_size=3, mixing="free", qkv_bias=False)
    assert block.mlp.fc1.out_features == 48
    assert block.aggregation.affinity.shape == (2, 4, 4) and block.aggregation.local_weight.shape == (16, 3, 3)
    assert block.aggregation.in_proj.bias is None and block.aggregation.mixing == "free"


def test_device_and_dtype():
    block = ContainerBlock(16, 2, static="both", grid_size=(2, 2), mixing="free", device="meta", dtype=torch.bfloat16)
    assert {(p.device.type, p.dtype) for p in block.parameters()} == {("meta", torch.bfloat16)}


def test_representation_names_the_setting():
    text = repr(ContextAggregation(16, 2, static="both", grid_size=(2, 2)))
    assert "num_heads=2, dynamic=True, static='both', kernel_size=5, grid_size=(2, 2), mixing='gate'" in text


@pytest.mark.parametrize("layer", [ContextAggregation, ContainerBlock])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_heads": 3}, "num_heads: expected a divisor of dim = 16, got 3"),
        ({"num_heads": 0}, "num_heads: expected a divisor of dim = 16, got 0"),
        ({"static": "conv"}, 'static: expected "local", "dense", "both" or None, got \'conv\''),
        ({"dynamic": False, "static": None}, "static: expected a static affinity because dynamic=False, got None"),
        ({"kernel_size": 4}, "kernel_size: expected one or two odd integers up to 11, got 4"),
        ({"static": "dense"}, r"grid_size: expected \(H, W\) because static='dense', got None"),
        (
            {"static": "dense", "grid_size": (0, 4)},
            r"grid_size: expected \(H, W\), two integers of at least 1, got \(0, 4\)",
        ),
        ({"mixing": "sum"}, 'mixing: expected "gate" or "free", got \'sum\''),
    ],
)
def test_bad_arguments(layer, arguments, message):
    with pytest.raises(ValueError, match=message):
        layer(16, **{"num_heads": 2, **arguments})


def test_bad_inputs():
    with pytest.raises(ValueError, match=r"x: expected \(B, C, H, W\) with C = 16, got \(2, 8, 4, 4\)"):
        ContextAggregation(16, 2)(torch.ones(2, 8, 4, 4))
    layer = ContextAggregation(16, 2, static="dense", grid_size=(4, 4))
    with pytest.raises(ValueError, match=r"x: expected H, W = \(4, 4\), which the dense affinity fixes, got \(4, 5\)"):
        layer(torch.ones(2, 16, 4, 5))
    with pytest.raises(ValueError, match=r"x: expected \(B, C, H, W\) with C = 16, got \(2, 16, 4\)"):
        layer(torch.ones(2, 16, 4))
    with pytest.raises(ValueError, match="kernel_size: expected one or two odd integers up to 11, got 2"):
        LocalAggregation(8, 2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ContextAggregation(16, 2.0), "num_heads: expected a divisor of dim = 16, got 2.0"),
        (lambda: ContextAggregation(16.0, 2), "dim: expected a positive integer, got 16.0"),
        (lambda: ContextAggregation(16, 2, kernel_size=True), "kernel_size: expected one or two odd .* got True"),
        (lambda: ContextAggregation(16, 2, kernel_size=(3, 13)), r"kernel_size: expected one or .* got \(3, 13\)"),
        (lambda: ContextAggregation(16, 2, kernel_size=(3, 5, 7)), r"kernel_size: expected one .* got \(3, 5, 7\)"),
        (lambda: ContextAggregation(16, 2, grid_size=4), r"grid_size: expected \(H, W\), two integers .* got 4"),
        (lambda: ContextAggregation(16, 2, proj_drop=2), "proj_drop: expected a probability .* got 2"),
        (lambda: ContainerBlock(16, 2, drop_path=-1), "drop_path: expected a probability .* got -1"),
        (lambda: ContainerBlock(16, 2, 0), "mlp_ratio: expected a positive number, got 0"),
    ],
)
def test_bad_kinds(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("layer", [ContextAggregation(16, 2), LocalAggregation(16), ContainerBlock(16, 2)])
def test_every_layer_names_its_input(layer):
    with pytest.raises(ValueError, match=r"x: expected \(B, C, H, W\) with C = 16, got \(2, 8, 4, 4\)"):
        layer(torch.ones(2, 8, 4, 4))
    with pytest.raises(TypeError, match=r"x: expected a tensor \(B, C, H, W\), got NoneType"):
        layer(None)


@pytest.mark.parametrize("settings", [{}, {"dynamic": False}], ids=["mix", "static"])
def test_empty_batch(settings):
    assert ContextAggregation(16, 2, **settings)(torch.ones(0, 16, 4, 3)).shape == (0, 16, 4, 3)


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(2, 6, 4, 3), (2, 6, 1, 1), (1, 1, 4, 3)], ids=str)
def test_a_channel_linear_is_a_1x1_convolution(shape, dtype, channels_last):
    layer = ChannelLinear(shape[1], 5, dtype=dtype)
    x = torch.randn(shape, dtype=dtype)
    x = x.to(memory_format=torch.channels_last) if channels_last else x
    torch.testing.assert_close(layer(x), F.conv2d(x, layer.weight[..., None, None], layer.bias))
    assert layer(x).is_contiguous(memory_format=torch.channels_last)


def test_other_norms():
    """Norms that know nothing of device and dtype, such as torchvision's frozen one."""
    block = ContainerBlock(16, 2, norm_layer=lambda dim: torch.nn.GroupNorm(4, dim))
    assert isinstance(block.norm1, torch.nn.GroupNorm) and isinstance(block.norm2, torch.nn.GroupNorm)
    assert block(torch.randn(2, 16, 3, 3)).shape == (2, 16, 3, 3)


def test_initial_values():
    layer = ContextAggregation(64, 2, static="both", grid_size=(8, 8))
    assert layer.local_weight.abs().max() <= 1 / 5 and layer.local_weight.std() > 0.1  # U(±1/√25)
    assert 0.018 < layer.affinity.std() < 0.022


def test_drop_path_drops_both_branches():
    """With the branches of a sample dropped, what is left is the position embedding."""
    block = ContainerBlock(16, 2, drop_path=0.999).train()
    x = torch.randn(4, 16, 3, 3)
    torch.testing.assert_close(block(x), block.pos_embed(x))


def test_dropout_and_activation_reach_their_places():
    block = ContainerBlock(16, 2, drop=0.25, act_layer=torch.nn.ReLU)
    assert block.aggregation.proj_drop.p == block.mlp.drop1.p == block.mlp.drop2.p == 0.25
    assert isinstance(block.mlp.act, torch.nn.ReLU)
    layer = ContextAggregation(16, 2, proj_drop=0.999).train()
    assert (layer(torch.randn(2, 16, 3, 3)) == 0).float().mean() > 0.9
