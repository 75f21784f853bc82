"""The projection's gradients one by one, what they keep, and those of higher order."""

from functools import partial

import pytest
import torch
from backends import DEVICES, DTYPES, FUSED_PROJECTION, PROJECTION, dtype_name
from projection_cases import Case, make, run

from container_kernels import projection, projection_with_moments, projection_with_statistics
from container_kernels.ops.common.tokens import scaled_samples
from container_kernels.testing import assert_within_budget, eager_projection


@pytest.mark.parametrize("backend", FUSED_PROJECTION)
def test_gradients_of_each_result_alone(backend):
    """What is not used adds nothing, whether it is y or a statistic."""
    leaves, mask = make(Case((3, 9), 20, 37, residual=True, scaled=True), torch.float32, DEVICES[backend])
    wanted = list(leaves.values())
    results = projection_with_statistics(**leaves, sample_scale=mask, backend=backend)
    expected = projection_with_statistics(**leaves, sample_scale=mask, backend="reference")
    for actual, other in zip(results, expected, strict=True):
        torch.testing.assert_close(
            torch.autograd.grad(actual.square().mean(), wanted, retain_graph=True),
            torch.autograd.grad(other.square().mean(), wanted, retain_graph=True),
            rtol=1e-4,
            atol=1e-3,
        )


@pytest.mark.parametrize("wanted", ["x", "weight", "bias", "residual"])
@pytest.mark.parametrize("function", [projection, projection_with_statistics], ids=["", "statistics"])
@pytest.mark.parametrize("backend", FUSED_PROJECTION)
def test_one_gradient_at_a_time(backend, function, wanted):
    """A leaf that is frozen gets none, and changes nothing for the one that is not."""
    leaves, mask = make(Case((2, 9), 20, 37, residual=True, scaled=True), torch.float32, DEVICES[backend])
    _, together = run(function, leaves, sample_scale=mask, backend=backend)
    alone = {name: t if name == wanted else t.detach() for name, t in leaves.items()}
    _, grads = run(function, alone, sample_scale=mask, backend=backend)
    assert list(grads) == [wanted]
    torch.testing.assert_close(grads[wanted], together[wanted])


@pytest.mark.parametrize("backend", FUSED_PROJECTION)
def test_what_is_kept_for_backward(backend):
    leaves, mask = make(Case((2, 50), 8, 64, residual=True, scaled=True), torch.float32, DEVICES[backend])
    inputs = leaves["x"].numel() + leaves["weight"].numel() + mask.numel()
    with_moments = inputs + 2 * 50 * 64 + 64  # the output and its sum, of which the mean is made
    for function, expected in (
        (projection, inputs),
        (projection_with_moments, with_moments),
        (projection_with_statistics, with_moments + 3 * 64),  # what Σy² is made of
    ):
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, saved=saved: saved.append(t.numel()) or t, lambda t: t):
            function(**leaves, sample_scale=mask, backend=backend)
        assert sum(saved) == expected


def problem(case, dtype, backend):
    """(function, leaves) of a problem: `function(op)` takes the leaves by position, as gradcheck hands them over."""
    leaves, mask = make(case, dtype, DEVICES[backend])
    leaves = {name: t for name, t in leaves.items() if t is not None}

    def function(op):
        return lambda *tensors: op(**dict(zip(leaves, tensors, strict=True)), sample_scale=mask)

    return function, list(leaves.values())


@pytest.mark.parametrize("op", [projection, projection_with_statistics], ids=["", "statistics"])
@pytest.mark.parametrize(
    "case", [Case((2, 3), 3, 2, residual=True, scaled=True), Case((3,), 2, 4, bias=False)], ids=str
)
@pytest.mark.parametrize("backend", [name for name in PROJECTION if torch.float64 in DTYPES[name]])
def test_gradients_to_second_order(backend, case, op):
    function, leaves = problem(case, torch.float64, backend)
    assert torch.autograd.gradcheck(function(partial(op, backend=backend)), leaves)
    assert torch.autograd.gradgradcheck(function(partial(op, backend=backend)), leaves)


def gradient_penalty(function, leaves, order):
    """The gradients of order `order`: of the squared norm of those one order below, and in the end of sines."""
    results = function(*leaves)
    results = results if isinstance(results, tuple) else (results,)
    value = sum(result.double().sin().sum() for result in results)
    for _ in range(order - 1):
        value = sum(t.double().square().sum() for t in torch.autograd.grad(value, leaves, create_graph=True))
    return torch.autograd.grad(value, leaves)


@pytest.mark.parametrize("op", [projection, projection_with_statistics], ids=["", "statistics"])
@pytest.mark.parametrize("backend", FUSED_PROJECTION)
def test_gradients_to_third_order(backend, op):
    function, leaves = problem(Case((3, 2), 4, 5, residual=True, scaled=True), torch.float32, backend)
    actual = gradient_penalty(function(partial(op, backend=backend)), leaves, order=3)
    exact_leaves = [leaf.detach().double().requires_grad_() for leaf in leaves]
    exact = gradient_penalty(function(partial(op, backend="reference")), exact_leaves, order=3)
    for grad, other in zip(actual, exact, strict=True):
        torch.testing.assert_close(grad.double(), other, rtol=1e-4, atol=1e-4 * other.abs().max().item())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=dtype_name)
@pytest.mark.parametrize("backend", PROJECTION)
def test_second_order_in_narrow_dtypes(backend, dtype):
    function, leaves = problem(Case((4, 19), 20, 37, scaled=True), dtype, backend)
    exact_leaves = [leaf.detach().double().requires_grad_() for leaf in leaves]
    actual = gradient_penalty(function(partial(projection, backend=backend)), leaves, order=2)
    eager = gradient_penalty(function(eager_projection), leaves, order=2)
    exact = gradient_penalty(function(partial(projection, backend="reference")), exact_leaves, order=2)
    for name, *grads in zip(("x", "weight", "bias"), actual, eager, exact, strict=True):
        assert_within_budget(f"second-order gradient of {name}", *grads)


def test_factors_are_not_rounded_before_their_product():
    branch, factors = torch.randn(50, 3, 4).bfloat16(), torch.rand(50)
    expected = (branch.float() * factors[:, None, None]).bfloat16()
    assert torch.equal(scaled_samples(branch, factors), expected)
    assert scaled_samples(branch, None) is branch
