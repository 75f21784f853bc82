"""Gradients of many outputs at once: `is_grads_batched`, and jacobians on top of it, are those one after the other."""

import pytest
import torch
from backends import DEVICES

from container_kernels import (
    ContainerBlock,
    context_aggregation,
    deformable_attention,
    fused_mlp,
    local_aggregation,
    local_aggregation_with_statistics,
    projection,
    projection_with_statistics,
)
from container_kernels.ops.context_aggregation.api import packed_context_aggregation

pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop")


def mix(q, k, v, weight, bias, affinity, alpha, **options):
    terms = {"local_weight": weight, "local_bias": bias, "affinity": affinity, "alpha": alpha}
    return context_aggregation(q, k, v, **terms, grid_size=(2, 3), **options)


def packed_mix(packed, weight, **options):
    return packed_context_aggregation(packed, local_weight=weight, grid_size=(2, 3), **options)


def deformable(value, locations, weights, **options):
    return deformable_attention(value, [(2, 2), (1, 2)], locations, weights, **options)


TOKENS = (1, 6, 2, 4)
OPS = {
    "mix": (mix, [TOKENS, TOKENS, TOKENS, (8, 3, 3), (8,), (2, 6, 6), (2,)]),
    "packed mix": (packed_mix, [(1, 6, 3, 2, 4), (8, 3, 3)]),
    "local": (local_aggregation, [(1, 2, 3, 8), (8, 3, 3), (8,)]),
    "local with statistics": (local_aggregation_with_statistics, [(1, 2, 3, 8), (8, 3, 3), (8,)]),
    "deformable": (deformable, [(1, 6, 2, 4), (1, 3, 2, 2, 1, 2), (1, 3, 2, 2, 1)]),
    "projection": (projection, [(1, 5, 8), (4, 8), (4,)]),
    "projection with statistics": (projection_with_statistics, [(1, 5, 8), (4, 8), (4,)]),
    "mlp": (fused_mlp, [(1, 5, 8), (16, 8), (16,), (8, 16), (8,)]),
}


def check(results, leaves):
    for out in results if isinstance(results, tuple) else (results,):  # of one result: the others have no gradient
        rows = torch.randn(3, *out.shape, device=out.device)
        options = {"retain_graph": True, "allow_unused": True, "materialize_grads": True}
        batched = torch.autograd.grad(out, leaves, rows, is_grads_batched=True, **options)
        for row, vector in enumerate(rows):
            for many, one in zip(batched, torch.autograd.grad(out, leaves, vector, **options), strict=True):
                torch.testing.assert_close(many[row], one)


@pytest.mark.parametrize("backend", ["cpu", "triton"])
@pytest.mark.parametrize("op", OPS)
def test_of_every_op(op, backend):
    function, shapes = OPS[op]
    leaves = [torch.randn(shape, device=DEVICES[backend], requires_grad=True) for shape in shapes]
    check(function(*leaves, backend=backend), leaves)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("dynamic", [True, False], ids=["mix", "static"])
def test_of_a_block(dynamic, training):
    block = ContainerBlock(8, 2, dynamic=dynamic).train(training)
    x = torch.randn(2, 8, 2, 2, requires_grad=True)
    check(block(x), [x, *block.parameters()])
    jacobian = torch.autograd.functional.jacobian(block.eval(), x, vectorize=True)
    torch.testing.assert_close(jacobian, torch.autograd.functional.jacobian(block, x))
