"""Local aggregation on every backend: numbers, gradients, layouts, errors."""

import pytest
import torch
from backends import ALL, DEVICES, FUSED, identifier
from local_aggregation_cases import SHAPES, make, promoted, repeats, served

from container_kernels import local_aggregation
from container_kernels.testing import assert_within_budget, eager_local_aggregation, poisoned_outputs


def run(function, leaves, residual, **options):
    x, weight, bias = leaves
    out = function(x, weight, bias, residual=residual, **options)
    grad_out = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).bfloat16().to(out)
    grads = torch.autograd.grad(out, [t for t in leaves if t is not None], grad_out)
    return out, dict(zip(("x", "weight", "bias"), grads, strict=False))


@pytest.mark.parametrize(("backend", "dtype", "shape"), served(), ids=identifier)
def test_matches_float64(backend, dtype, shape):
    residual = SHAPES.index(shape) % 2 == 0  # what the same test with statistics leaves out
    leaves = make(shape, dtype, DEVICES[backend], bias=not residual)
    exact, exact_grads = run(local_aggregation, promoted(leaves), residual, backend="reference")
    eager, eager_grads = run(eager_local_aggregation, leaves, residual)
    with poisoned_outputs():
        out, grads = run(local_aggregation, leaves, residual, backend=backend)
    assert out.dtype == dtype and out.is_contiguous()
    assert_within_budget("out", out, eager, exact)
    for name in exact_grads:
        assert_within_budget(f"gradient of {name}", grads[name], eager_grads[name], exact_grads[name])


@pytest.mark.parametrize("backend", ALL)
def test_by_hand(backend):
    """A 2×2 image, a filter whose taps are powers of ten: every digit of the result names its tap."""
    image = torch.tensor([[1.0, 2.0], [3.0, 4.0]], device=DEVICES[backend]).view(1, 2, 2, 1)
    taps = torch.tensor([0, 0, 0, 0, 1, 10, 0, 100, 1000.0], device=DEVICES[backend]).view(1, 3, 3)
    out = local_aggregation(image, taps, torch.tensor([0.5], device=DEVICES[backend]), backend=backend)
    # centre + 10·right + 100·below + 1000·below right + bias
    expected = torch.tensor([1 + 20 + 300 + 4000, 2 + 400, 3 + 40, 4]) + 0.5
    torch.testing.assert_close(out.flatten().cpu(), expected)


@pytest.mark.parametrize("backend", ALL)
@pytest.mark.parametrize("layout", ["channels_last", "nchw", "slice", "expanded"])
def test_any_strides(backend, layout):
    base = torch.randn(2, 12, 5, 6, device=DEVICES[backend])
    x = {
        "channels_last": base.to(memory_format=torch.channels_last).permute(0, 2, 3, 1),
        "nchw": base.permute(0, 2, 3, 1),
        "slice": torch.randn(2, 5, 6, 30, device=DEVICES[backend])[..., 7:19],
        "expanded": base[:1, :, :1].permute(0, 2, 3, 1).expand(2, 5, 6, 12),
    }[layout].requires_grad_()
    weight = torch.randn(12, 3, 3, device=DEVICES[backend], requires_grad=True)
    out = local_aggregation(x, weight, backend=backend)
    expected = local_aggregation(x, weight, backend="reference")
    torch.testing.assert_close(out, expected)
    for grad, other in zip(
        torch.autograd.grad(out.sum(), (x, weight)), torch.autograd.grad(expected.sum(), (x, weight)), strict=True
    ):
        torch.testing.assert_close(grad, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", ALL)
@pytest.mark.parametrize("shape", [(0, 3, 3, 4), (2, 0, 3, 4)], ids=str)
def test_empty(backend, shape):
    x = torch.randn(shape, device=DEVICES[backend], requires_grad=True)
    weight = torch.randn(4, 3, 3, device=DEVICES[backend], requires_grad=True)
    bias = torch.randn(4, device=DEVICES[backend], requires_grad=True)
    out = local_aggregation(x, weight, bias, backend=backend)
    assert out.shape == shape
    out.sum().backward()
    assert x.grad.shape == shape and not weight.grad.count_nonzero() and not bias.grad.count_nonzero()


@pytest.mark.parametrize("backend", FUSED)
def test_repeats_are_bit_identical(backend):
    leaves = make((2, 19, 17, 40, 5, 5), torch.float32, DEVICES[backend])
    first, first_grads = run(local_aggregation, leaves, False, backend=backend)
    for _ in range(repeats(backend)):
        out, grads = run(local_aggregation, leaves, False, backend=backend)
        assert torch.equal(out, first) and all(torch.equal(grads[name], first_grads[name]) for name in grads)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_gradients_to_second_order(backend):
    leaves = promoted(make((1, 3, 4, 2, 3, 5), torch.float64, "cpu"))

    def function(x, weight, bias):
        return local_aggregation(x, weight, bias, residual=True, backend=backend)

    assert torch.autograd.gradcheck(function, leaves)
    assert torch.autograd.gradgradcheck(function, leaves)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": None}, TypeError, r"x: expected a tensor \(B, H, W, C\), got NoneType"),
        ({"x": torch.ones(2, 3, 4)}, ValueError, r"x: expected 4 dimensions \(B, H, W, C\), got shape \(2, 3, 4\)"),
        ({"x": torch.ones(1, 2, 2, 4, dtype=torch.int64)}, TypeError, "x: expected dtype float32.* got torch.int64"),
        (
            {"weight": torch.ones(4, 2, 2)},
            ValueError,
            r"weight: expected \(C, kh, kw\) = \(4, odd, odd\), got \(4, 2, 2\)",
        ),
        ({"weight": torch.ones(5, 3, 3)}, ValueError, r"weight: expected .* = \(4, odd, odd\), got \(5, 3, 3\)"),
        ({"weight": torch.ones(4, 3, 13)}, ValueError, r"weight: expected kh and kw up to 11, got \(4, 3, 13\)"),
        ({"weight": torch.ones(4, 1, 3, 3)}, ValueError, r"weight: expected 3 dimensions \(C, kh, kw\)"),
        ({"weight": torch.ones(4, 3, 3, device="meta")}, ValueError, "weight: expected device cpu as x, got meta"),
        ({"bias": torch.ones(5)}, ValueError, r"bias: expected \(C,\) = \(4,\), got \(5,\)"),
        ({"bias": 1.0}, TypeError, r"bias: expected a tensor \(C,\), got float"),
        ({"backend": "gpu"}, ValueError, "backend: expected one of cuda, triton, cpu, reference, got 'gpu'"),
    ],
)
def test_bad_input_is_named(change, error, message):
    arguments = {"x": torch.ones(1, 2, 2, 4), "weight": torch.ones(4, 3, 3)}
    with pytest.raises(error, match=message):
        local_aggregation(**{**arguments, **change})
