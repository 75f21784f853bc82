"""FLOP counters see the operators: as many as of the same network in plain PyTorch."""

import pytest
import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

from container_kernels import ContainerBlock, usable_backends, use_backend


def counted(function) -> int:
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def test_network_counts_its_multiplications():
    """3.85 G multiply-adds, the released network's, at 224×224; attention's products are of N², N = 49."""
    model = timm.create_model("container_light").eval()
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        assert round(counted(lambda: model(x)) / 2e9, 2) == 3.85
        assert round(counted(lambda: model.fuse()(x)) / 2e9, 2) == 3.85


@pytest.mark.skipif(usable_backends()["cpu"] is not None, reason="counts the C++ kernels")
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "mix"])
def test_block_forward_and_backward(dynamic):
    x = torch.randn(2, 32, 7, 7, requires_grad=True)
    block = ContainerBlock(32, 2, dynamic=dynamic)
    with use_backend("reference"):
        plain = counted(lambda: block(x))
    with use_backend("cpu"):
        out = block(x)
        forward, backward = counted(lambda: block(x)), counted(lambda: out.sum().backward())
    # The reference folds norms by products of a matrix and a vector, which count.
    assert 0 <= plain - forward < plain // 50
    # Two for each product of the forward pass, and what is computed again: the MLP's first layer, and the scores.
    again = 2 * (2 * 49) * 32 * 128 + dynamic * 2 * (2 * 2 * 49**2 * 16)
    assert backward - 2 * forward - again < plain // 50
    assert backward >= 2 * forward + again
