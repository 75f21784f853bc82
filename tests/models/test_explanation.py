"""`Network.explain`: what is fused, which backend serves, and the reasons where not."""

import pytest
import timm
import torch
from torch import nn

from container_kernels import usable_backends, use_backend
from container_kernels.models.explanation import explain_blocks
from container_kernels.ops.dispatch.backend import Choice

NO_CPU = usable_backends()["cpu"] is not None


def network(**arguments) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("container_tiny", **arguments)


def blocks_of(model, size=32):
    return explain_blocks(model, torch.zeros(1, 3, size, size))


@pytest.mark.skipif(NO_CPU, reason="names the C++ kernels")
def test_a_fused_network_has_nothing_to_explain():
    model = network()
    blocks = blocks_of(model)
    assert {(b.training, b.evaluation, b.after_fuse) for b in blocks} == {(None, None, None)}
    mixing = blocks[-1]
    assert {choice.op for choice in mixing.choices} >= {"context_aggregation", "projection", "fused_mlp"}
    assert Choice("context_aggregation", "cpu", {}) in mixing.choices
    fused = blocks_of(model.fuse())
    assert all(block.is_fused and block.after_fuse is None for block in fused)
    assert not any(choice.op == "fold_norm" for block in fused for choice in block.choices)


def test_reasons_are_notes_and_blocks_alike_are_one_row():
    model = network()
    model.stages[0].blocks[0].norm1 = nn.GroupNorm(1, model.stages[0].blocks[0].norm1.num_features)
    table = model.explain((3, 32, 32))
    assert "norm1 is of class GroupNorm, no batch norm" in table
    first = next(line for line in table.splitlines() if line.startswith("stages.0.blocks.0"))
    assert first.count("in part [1]") == 3


def test_a_requested_backend_and_one_that_cannot_serve_are_named():
    model = network()
    with use_backend("reference"):
        assert {choice.backend for block in blocks_of(model) for choice in block.choices} == {"reference"}
    (reason,) = {
        reason
        for block in blocks_of(model)
        for choice in block.choices
        if choice.op == "fold_norm"
        for reason in choice.passed_over.values()
    }
    assert reason == "fold_norm has no 'cpu' kernel"


def test_the_network_is_as_before():
    model = network().train()
    model.stages[0].eval()
    before = {name: module.training for name, module in model.named_modules()}
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.explain((3, 32, 32))
    assert {name: module.training for name, module in model.named_modules()} == before
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in model.named_buffers())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_network_that_timm_did_not_make_needs_a_size():
    model = network()
    del model.pretrained_cfg
    with pytest.raises(ValueError, match="input_size: expected"):
        model.explain()
