"""FLOP counters see the operators: as many as of the same network in plain PyTorch."""

import pytest
import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

from container_kernels import (
    ContainerBlock,
    context_aggregation,
    deformable_attention,
    fused_mlp,
    local_aggregation,
    local_aggregation_with_statistics,
    projection,
    usable_backends,
    use_backend,
)
from container_kernels.ops.context_aggregation.api import packed_context_aggregation


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


N, HEADS, DIM = 9, 2, 4
WIDTH = HEADS * DIM


def draw(*shape):
    return torch.randn(*shape, requires_grad=True)


def mix(packed, **terms):
    if "local_weight" in terms:
        terms["grid_size"] = (3, 3)
    if packed:
        return packed_context_aggregation(draw(2, N, 3, HEADS, DIM), **terms)
    return context_aggregation(*(draw(2, N, HEADS, DIM) for _ in range(3)), **terms)


def sampling(queries, points):
    return draw(2, queries, HEADS, 1, points, 2), draw(2, queries, HEADS, 1, points)


# Every op: what it multiplies forward, and how much of that a backward pass multiplies again, beyond twice.
OPS = {
    **{
        f"mix {' '.join(names)}{' packed' * packed}": (
            lambda names=names, packed=packed: mix(packed, **{name: draw(*TERMS[name]) for name in names}),
            2 * 2 * HEADS * N * N * DIM,
        )
        for packed in (False, True)
        for names in ((), ("local_weight",), ("affinity",), ("local_weight", "affinity"))
    },
    "local": (lambda: local_aggregation(draw(2, 3, 3, WIDTH), draw(WIDTH, 3, 3)), 0),
    "local statistics": (lambda: local_aggregation_with_statistics(draw(2, 3, 3, WIDTH), draw(WIDTH, 3, 3))[0], 0),
    "projection": (lambda: projection(draw(2, N, WIDTH), draw(5, WIDTH), draw(5)), 0),
    "deformable": (lambda: deformable_attention(draw(2, 5, HEADS, DIM), [(1, 5)], *sampling(3, 2)), 0),
    "mlp": (lambda: fused_mlp(draw(2, N, WIDTH), draw(16, WIDTH), None, draw(WIDTH, 16), None), 2 * 2 * N * WIDTH * 16),
}
TERMS = {"local_weight": (WIDTH, 3, 3), "affinity": (HEADS, N, N)}


@pytest.mark.skipif(usable_backends()["cpu"] is not None, reason="counts the C++ kernels")
@pytest.mark.parametrize("op", OPS)
def test_every_op_counts_what_its_definition_multiplies(op):
    run, again = OPS[op]
    with use_backend("reference"):
        plain = counted(run)
    with use_backend("cpu"):
        assert counted(run) == plain
        out = run()
        assert counted(lambda: out.sum().backward()) == 2 * plain + again
