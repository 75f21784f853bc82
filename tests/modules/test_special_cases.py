"""The networks that CONTAINER unites are settings of one block: exact in float64, output and gradients.

The reference is PyTorch's own layers or timm's blocks, and the block whose setting has the one term alone.
"""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d
from timm.models.mlp_mixer import MixerBlock
from timm.models.vision_transformer import Block
from torch import nn

from container_kernels import ContainerBlock, use_backend

EXACT = {"rtol": 1e-11, "atol": 1e-12}
DIM, HEADS, GRID = 24, 3, (4, 5)
LAYER_NORM = partial(LayerNorm2d, eps=1e-6)
# (alpha, beta), how a block comes to have them, and its term that is left alone
SPECIAL = {
    "beta = 0": ("free", {"alpha": 1.0, "beta": 0.0}, "dynamic"),
    "alpha = 0": ("free", {"alpha": 0.0, "beta": 1.0}, "static"),
    # σ(±100) is 1 and 0 in float64, to the last bit for 1 and to 1e-44 for 0
    "gate open": ("gate", {"gate": 100.0}, "dynamic"),
    "gate shut": ("gate", {"gate": -100.0}, "static"),
}


def randomized(module):
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module.double()


def image():
    return torch.randn(2, DIM, *GRID, dtype=torch.float64).to(memory_format=torch.channels_last)


def with_weights_of(block, mixed):
    """`block`, with the weights of `mixed` that it has; one without attention has the value projection alone."""
    weights = mixed.state_dict()
    own = block.state_dict()
    chosen = {}
    for name, tensor in own.items():
        given = weights[name]
        chosen[name] = given[-tensor.shape[0] :] if "in_proj" in name else given
    block.load_state_dict(chosen)
    return block.double()


def output_and_gradients(block, x):
    x = x.detach().requires_grad_()
    y = block(x)
    names, parameters = zip(*block.named_parameters(), strict=True)
    grad_x, *grads = torch.autograd.grad(y.square().sum(), (x, *parameters))
    return y, grad_x, dict(zip(names, grads, strict=True))


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("static", ["local", "dense", "both"])
@pytest.mark.parametrize("special", SPECIAL)
def test_one_term_alone_is_the_block_that_has_it_alone(special, static, backend, training):
    mixing, factors, left = SPECIAL[special]
    settings = {"grid_size": GRID, "mixing": mixing}
    mixed = randomized(ContainerBlock(DIM, HEADS, static=static, **settings))
    for name, value in factors.items():
        nn.init.constant_(getattr(mixed.aggregation, name), value)
    alone = {"dynamic": True, "static": None} if left == "dynamic" else {"dynamic": False, "static": static}
    block = with_weights_of(ContainerBlock(DIM, HEADS, **{**settings, **alone}), mixed)
    x = image()
    with use_backend(backend):
        y, grad_x, grads = output_and_gradients(mixed.train(training), x)
        expected, expected_x, expected_grads = output_and_gradients(block.train(training), x)
    torch.testing.assert_close(y, expected, **EXACT)
    torch.testing.assert_close(grad_x, expected_x, **EXACT)
    for name, gradient in expected_grads.items():
        given = grads[name]
        if "in_proj" in name:
            assert left == "dynamic" or given[: -gradient.shape[0]].abs().max() < 1e-30, "queries and keys have no part"
            given = given[-gradient.shape[0] :]
        torch.testing.assert_close(given, gradient, rtol=1e-10, atol=1e-10, msg=lambda text, name=name: name + text)
    absent = grads.keys() - expected_grads.keys() - {"aggregation.gate", "aggregation.alpha", "aggregation.beta"}
    assert (len(absent) > 0) == (left == "dynamic")
    assert all(grads[name].abs().max() < 1e-30 for name in absent), "the term that is off learns nothing"


def attention_block(block, x):
    """A Transformer block between a depthwise position embedding and batch norms, of PyTorch's layers."""
    layer = block.aggregation
    attention = nn.MultiheadAttention(DIM, HEADS, batch_first=True, dtype=torch.float64)
    attention.load_state_dict({
        "in_proj_weight": layer.in_proj.weight, "in_proj_bias": layer.in_proj.bias,
        "out_proj.weight": layer.out_proj.weight, "out_proj.bias": layer.out_proj.bias,
    })  # fmt: skip
    tokens = block.norm1(x).flatten(2).transpose(1, 2)
    return attention(tokens, tokens, tokens)[0].transpose(1, 2).unflatten(2, GRID)


def depthwise_block(block, x):
    """A depthwise convolution between two 1×1."""
    layer = block.aggregation
    values = F.conv2d(block.norm1(x), layer.in_proj.weight[-DIM:, :, None, None], layer.in_proj.bias[-DIM:])
    local = F.conv2d(values, layer.local_weight[:, None], layer.local_bias, padding=2, groups=DIM)
    return F.conv2d(local, layer.out_proj.weight[..., None, None], layer.out_proj.bias)


@pytest.mark.parametrize("special", SPECIAL)
def test_one_term_alone_is_pytorchs(special):
    mixing, factors, left = SPECIAL[special]
    block = randomized(ContainerBlock(DIM, HEADS, mixing=mixing)).eval()
    for name, value in factors.items():
        nn.init.constant_(getattr(block.aggregation, name), value)
    x = image()
    h = x + F.conv2d(x, block.pos_embed.weight[:, None], block.pos_embed.bias, padding=1, groups=DIM)
    h = h + (attention_block if left == "dynamic" else depthwise_block)(block, h)
    mlp = block.mlp
    hidden = F.gelu(F.conv2d(block.norm2(h), mlp.fc1.weight[..., None, None], mlp.fc1.bias))
    expected = h + F.conv2d(hidden, mlp.fc2.weight[..., None, None], mlp.fc2.bias)
    torch.testing.assert_close(block(x), expected, **EXACT)


def column(tokens):
    """(B, N, C) as an image one pixel wide."""
    return tokens.transpose(1, 2)[..., None]


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_a_transformers_block_is_timms(training):
    """pos_embed=False, static=None, layer norms: a ViT's or DeiT's, class token and all."""
    theirs = randomized(Block(DIM, HEADS, qkv_bias=True, norm_layer=partial(nn.LayerNorm, eps=1e-6)))
    ours = ContainerBlock(DIM, HEADS, static=None, pos_embed=False, num_prefix_tokens=1, norm_layer=LAYER_NORM).double()
    names = {"attn.qkv": "aggregation.in_proj", "attn.proj": "aggregation.out_proj"}
    weights = theirs.state_dict()
    for old, new in names.items():
        weights = {name.replace(old, new): tensor for name, tensor in weights.items()}
    ours.load_state_dict(weights)
    tokens = torch.randn(2, 21, DIM, dtype=torch.float64)
    y, grad_x, _ = output_and_gradients(ours.train(training), column(tokens))
    expected, expected_x, _ = output_and_gradients(theirs.train(training), tokens)
    torch.testing.assert_close(y, column(expected), **EXACT)
    torch.testing.assert_close(grad_x, column(expected_x), **EXACT)


def test_mlp_mixers_block_is_timms():
    """Dense, one head, no projections, an MLP over the tokens: MLP-Mixer's as released."""
    theirs = randomized(MixerBlock(DIM, 20, norm_layer=partial(nn.LayerNorm, eps=1e-6)))
    hidden = theirs.mlp_tokens.fc1.out_features
    ours = ContainerBlock(
        DIM, 1, dynamic=False, static="dense", grid_size=GRID, hidden_tokens=hidden, projections=False, pos_embed=False,
        norm_layer=LAYER_NORM,
    )  # fmt: skip
    names = {
        "mlp_channels": "mlp", "mlp_tokens.fc1.weight": "aggregation.token_mlp.w1",
        "mlp_tokens.fc1.bias": "aggregation.token_mlp.b1", "mlp_tokens.fc2.weight": "aggregation.token_mlp.w2",
        "mlp_tokens.fc2.bias": "aggregation.token_mlp.b2",
    }  # fmt: skip
    weights = {name: tensor[None] if "mlp_tokens" in name else tensor for name, tensor in theirs.state_dict().items()}
    for old, new in names.items():
        weights = {name.replace(old, new): tensor for name, tensor in weights.items()}
    ours.double().load_state_dict(weights)
    tokens = torch.randn(2, 20, DIM, dtype=torch.float64)
    y, grad_x, _ = output_and_gradients(ours, tokens.transpose(1, 2).unflatten(2, GRID))
    expected, expected_x, _ = output_and_gradients(theirs, tokens)
    torch.testing.assert_close(y.flatten(2).transpose(1, 2), expected, **EXACT)
    torch.testing.assert_close(grad_x.flatten(2).transpose(1, 2), expected_x, **EXACT)


def test_multi_head_mlp_is_one_mixer_a_head():
    """Each head mixes its channels' tokens with matrices of its own."""
    settings = {"dynamic": False, "static": "dense", "grid_size": GRID, "projections": False}
    for hidden in ({"hidden_tokens": 7}, {}):
        heads = randomized(ContainerBlock(DIM, HEADS, **settings, **hidden)).aggregation
        x = image()
        parts = []
        for m, part in enumerate(x.chunk(HEADS, dim=1)):
            one = ContainerBlock(DIM // HEADS, 1, **settings, **hidden).aggregation.double()
            one.load_state_dict({name: tensor[m : m + 1] for name, tensor in heads.state_dict().items()})
            parts.append(one(part))
        torch.testing.assert_close(heads(x), torch.cat(parts, 1), **EXACT)


def test_pam_is_attention_with_a_matrix_added():
    """CONTAINER-PAM: a (heads, 1 + N, 1 + N) matrix beside the softmax, class token included."""
    block = randomized(
        ContainerBlock(DIM, HEADS, static="dense", grid_size=GRID, num_prefix_tokens=1, pos_embed=False, mixing="free",
                       norm_layer=LAYER_NORM)
    )  # fmt: skip
    layer, tokens = block.aggregation, torch.randn(2, 21, DIM, dtype=torch.float64)
    packed = F.linear(tokens, layer.in_proj.weight, layer.in_proj.bias)
    q, k, v = packed.view(2, 21, 3, HEADS, DIM // HEADS).permute(2, 0, 3, 1, 4)
    affinity = layer.alpha * (q @ k.mT / (DIM // HEADS) ** 0.5).softmax(-1) + layer.beta * layer.affinity
    expected = F.linear((affinity @ v).transpose(1, 2).flatten(2), layer.out_proj.weight, layer.out_proj.bias)
    torch.testing.assert_close(layer(column(tokens)), column(expected), **EXACT)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_prefix_tokens": -1}, "num_prefix_tokens: expected an integer of at least 0, got -1"),
        ({"num_prefix_tokens": 1, "pos_embed": False}, "num_prefix_tokens: expected 0 because static='local'"),
        ({"num_prefix_tokens": 1, "static": None}, "pos_embed: expected False because prefix tokens"),
        ({"hidden_tokens": 8}, "hidden_tokens: expected None unless dynamic=False, .* got 8 with dynamic=True"),
        (
            {"hidden_tokens": 0, "dynamic": False, "static": "dense"},
            "hidden_tokens: expected a positive integer or None",
        ),
        ({"projections": False}, "projections: expected True because dynamic=True has queries and keys, got False"),
    ],
)
def test_bad_settings(arguments, message):
    with pytest.raises(ValueError, match=message):
        ContainerBlock(DIM, HEADS, **{"grid_size": GRID, **arguments})


def test_a_column_of_another_length_is_refused():
    block = ContainerBlock(DIM, HEADS, static="dense", grid_size=GRID, num_prefix_tokens=1, pos_embed=False)
    with pytest.raises(
        ValueError, match=r"x: expected H, W = \(21, 1\), which the dense affinity fixes, got \(20, 1\)"
    ):
        block(torch.ones(1, DIM, 20, 1))
