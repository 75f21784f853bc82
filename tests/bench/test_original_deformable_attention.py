"""The contender of deformable attention computes what ours does."""

import pytest
import torch

pytest.importorskip("triton")
from bench.problems.original_deformable_attention import level_tensor, original_deformable_attention
from container_kernels import deformable_attention

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("head_dim", [32, 5])
def test_it_is_the_same_function(head_dim):
    sizes = [(5, 6), (2, 3)]
    leaves = (
        torch.randn(2, 36, 2, head_dim, device=DEVICE),
        torch.rand(2, 9, 2, 2, 3, 2, device=DEVICE) * 1.4 - 0.2,
        torch.randn(2, 9, 2, 2, 3, device=DEVICE),
    )
    leaves[1][0, 0, 0, 0, 0] = 1e9  # far outside
    value, locations, weights = (leaf.requires_grad_() for leaf in leaves)
    grad_out = torch.randn(2, 9, 2, head_dim, device=DEVICE)
    expected = deformable_attention(value, sizes, locations, weights, backend="reference")
    for shapes in (sizes, level_tensor(sizes, DEVICE)):
        out = original_deformable_attention(value, shapes, locations, weights)
        torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    actual = torch.autograd.grad(out, leaves, grad_out)
    torch.testing.assert_close(actual, torch.autograd.grad(expected, leaves, grad_out), rtol=1e-4, atol=1e-4)
