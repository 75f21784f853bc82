"""Calls that others make by habit: the message names the layout and what to do."""

import re
import warnings

import pytest
import timm
import torch
from tiny_networks import tiny

from container_kernels import ContainerBlock, context_aggregation, fused_mlp, local_aggregation, projection


@pytest.mark.parametrize(
    ("call", "owner"),
    [
        (lambda x: local_aggregation(x, torch.randn(32, 3, 3)), "weight"),
        (lambda x: projection(x, torch.randn(64, 32)), "weight"),
        (lambda x: fused_mlp(x, torch.randn(64, 32), None, torch.randn(32, 64), None), "w1"),
    ],
    ids=["local", "projection", "mlp"],
)
def test_channels_second(call, owner):
    x = torch.randn(2, 32, 7, 6)
    with pytest.raises(
        ValueError, match=rf"x: .* C = 32 as {owner} has, got \(2, 32, 7, 6\), .* pass x.movedim\(1, -1\)"
    ):
        call(x)
    call(x.movedim(1, -1))


@pytest.mark.parametrize("terms", ["local", "dense", "both"])
def test_heads_before_tokens(terms):
    arguments = {}
    if terms != "dense":
        arguments |= {"local_weight": torch.randn(32, 3, 3), "grid_size": (7, 7)}
    if terms != "local":
        arguments |= {"affinity": torch.randn(4, 49, 49)}
    qkv = [torch.randn(2, 4, 49, 8) for _ in range(3)]
    with pytest.raises(ValueError, match=r"v: expected \(B, N, M, D\), got \(2, 4, 49, 8\), .* transpose\(1, 2\)"):
        context_aggregation(*qkv, **arguments)
    context_aggregation(*(t.transpose(1, 2) for t in qkv), **arguments)


def test_as_many_heads_as_tokens_are_no_mistake():
    qkv = [torch.randn(1, 4, 4, 2) for _ in range(3)]
    context_aggregation(*qkv, local_weight=torch.randn(8, 3, 3), grid_size=(2, 2), affinity=torch.randn(4, 4, 4))


def test_tokens_to_a_block():
    block = ContainerBlock(32, 2).eval()
    tokens = torch.randn(2, 42, 32)
    with pytest.raises(ValueError, match=r"got \(2, 42, 32\): tokens \(B, N, C\) .*\.unflatten\(2, \(H, W\)\)"):
        block(tokens)
    assert block(tokens.transpose(1, 2).unflatten(2, (7, 6))).shape == (2, 32, 7, 6)


def test_weights_of_another_network_name_five_and_count():
    model = tiny("container_light")
    with pytest.raises(RuntimeError) as caught:
        model.load_state_dict(timm.create_model("resnet18").state_dict())
    message = str(caught.value)
    assert len(message) < 1000 and message.count('"') == 2 * 2 * 5
    counts = re.findall(r"and (\d+) more of (\d+)", message)
    assert len(counts) == 2 and all(int(more) == int(total) - 5 > 50 for more, total in counts)
    with pytest.raises(RuntimeError) as caught:
        model.load_state_dict(tiny("container_light", embed_dims=(32, 40, 48, 66)).state_dict())
    assert str(caught.value).count("size mismatch for") == 5 and "more sizes of" in str(caught.value)


def test_a_fused_network_warns_of_training_once():
    model = tiny("container_light").fuse()
    with pytest.warns(UserWarning, match="Train it before fuse"):
        model.train()
    model.reset_classifier(3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.eval().train()
        tiny("container_light").train()
        fused = tiny("container_light").fuse()
        fused.reset_classifier(3)
        fused.train()  # there is something to train


def test_fused_blocks_show_their_sizes():
    block = tiny("container_light").fuse().stages[3].blocks[0]
    assert "in_weight=(144, 48)" in repr(block) and "w1=(96, 48)" in repr(block)
