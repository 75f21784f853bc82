"""Numerical differentiation in float64, and what happens to second derivatives."""

import pytest
import torch
from backends import DENSE, DEVICES, FUSED

from container_kernels import context_aggregation
from container_kernels.testing import MixCase

CASES = [
    MixCase(batch=2, height=2, width=3, head_dim=3, kernel=(3, 5), dense=True),
    MixCase(batch=1, height=2, width=2, head_dim=2, kernel=None),
    MixCase(batch=1, height=2, width=3, head_dim=2, kernel=(3, 3), dense=True, dynamic=False),
]


def function_of_leaves(inputs, backend):
    names = list(inputs.leaves)

    def function(*leaves):
        inputs.leaves.update(zip(names, leaves, strict=True))
        qkv, arguments = inputs.arguments()
        return context_aggregation(*qkv, **arguments, backend=backend)

    return function, tuple(inputs.leaves.values())


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_gradcheck(backend, case):
    inputs = case.make(torch.float64, grad=True)
    if not case.dynamic:
        del inputs.leaves["alpha"]  # nothing depends on it
    function, leaves = function_of_leaves(inputs, backend)
    assert torch.autograd.gradcheck(function, leaves)


def test_reference_differentiates_twice():
    function, leaves = function_of_leaves(
        MixCase(batch=1, height=2, width=2, head_dim=2).make(torch.float64, grad=True), "reference"
    )
    assert torch.autograd.gradgradcheck(function, leaves)


def test_fused_second_derivative_says_what_to_use():
    function, leaves = function_of_leaves(MixCase(batch=1, head_dim=4).make(torch.float64, grad=True), "cpu")
    (grad,) = torch.autograd.grad(function(*leaves).square().sum(), leaves[:1], create_graph=True)
    with pytest.raises(RuntimeError, match=r"'cpu' has no second derivatives; .*backend='reference'"):
        grad.sum().backward()


@pytest.mark.parametrize(
    ("backend", "wanted"),
    [
        (backend, leaf)
        for backend in FUSED
        for leaf in ("packed", "alpha", "beta", "local_weight", "local_bias", "affinity")
        if leaf != "affinity" or backend in DENSE
    ],
)
def test_one_gradient_at_a_time(backend, wanted):
    """A leaf that is frozen costs the others nothing and gets none."""
    inputs = MixCase(dense=backend in DENSE).make(torch.float32, DEVICES[backend])
    inputs.leaves[wanted].requires_grad_()
    qkv, arguments = inputs.arguments()
    grads = []
    for name in (backend, "reference"):
        out = context_aggregation(*qkv, **arguments, backend=name)
        grads.append(torch.autograd.grad(out.square().sum(), inputs.leaves[wanted])[0])
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-4)
