"""The projection, alone and with statistics, on every backend: numbers, sums, layouts, errors."""

import math

import pytest
import torch
from backends import DEVICES, FUSED_PROJECTION, PROJECTION, backends_and_dtypes, dtype_name
from fused_mlp_cases import promoted
from projection_cases import (
    CASES,
    LONG,
    Case,
    assert_statistics_match_float64,
    assert_statistics_of,
    eager_with_statistics,
    make,
    run,
)

from container_kernels import projection, projection_with_statistics
from container_kernels.testing import assert_within_budget, eager_projection, poisoned_outputs


@pytest.mark.parametrize("case", CASES, ids=str)
def test_eager_is_the_same(case):
    """What budgets are made of: a baseline that were wrong would allow anything."""
    leaves, mask = make(case, torch.float64, "cpu")
    actual = run(eager_with_statistics, leaves, sample_scale=mask)
    torch.testing.assert_close(actual, run(projection_with_statistics, leaves, sample_scale=mask, backend="reference"))


@pytest.mark.parametrize("case", [*CASES, LONG], ids=str)
@pytest.mark.parametrize(("backend", "dtype"), backends_and_dtypes(PROJECTION), ids=dtype_name)
def test_matches_float64(backend, dtype, case):
    leaves, mask = make(case, dtype, DEVICES[backend])
    exact_mask = None if mask is None else mask.double()
    exact, exact_grads = run(projection, promoted(leaves), sample_scale=exact_mask, backend="reference")
    eager, eager_grads = run(eager_projection, leaves, sample_scale=mask)
    with poisoned_outputs():
        (out,), grads = run(projection, leaves, sample_scale=mask, backend=backend)
    assert out.dtype == dtype and out.is_contiguous()
    assert_within_budget("out", out, *eager, *exact)
    for name in exact_grads:
        assert grads[name].dtype == dtype
        assert_within_budget(f"gradient of {name}", grads[name], eager_grads[name], exact_grads[name])


@pytest.mark.parametrize("case", [CASES[i] for i in (0, 2, 3, 4, 6)], ids=str)
@pytest.mark.parametrize(("backend", "dtype"), backends_and_dtypes(PROJECTION), ids=dtype_name)
def test_with_statistics(backend, dtype, case):
    """The same output, its sums, and the gradients through all three."""
    assert_statistics_match_float64(backend, dtype, case)


@pytest.mark.parametrize("case", [LONG, Case((1, 30, 31), 7, 20), Case((1500,), 5, 3)], ids=str)
@pytest.mark.parametrize(("backend", "dtype"), backends_and_dtypes(PROJECTION), ids=dtype_name)
def test_long_sums(backend, dtype, case):
    """A mean beside the deviation: terms of one sign, whose rounding a careless sum would add up."""
    leaves, _ = make(case, dtype, DEVICES[backend])
    leaves["bias"] = leaves["bias"] + 3
    with poisoned_outputs():
        out, *sums = projection_with_statistics(**leaves, backend=backend)
    assert torch.equal(out, projection(**leaves, backend=backend))
    assert_statistics_of(out, *sums)


@pytest.mark.parametrize("backend", PROJECTION)
def test_by_hand(backend):
    """Rows of the weight are outputs; the factor is the branch's, not the residual's; sums are of the result."""
    device = DEVICES[backend]
    x = torch.tensor([[[1.0, 10.0]], [[2.0, 20.0]]], device=device)
    weight = torch.tensor([[1.0, 2.0], [3.0, 4.0], [0.0, 1.0]], device=device)
    bias = torch.tensor([0.5, 0.0, 0.0], device=device)
    residual = torch.full((2, 1, 3), 1000.0, device=device)
    scale = torch.tensor([1.0, 2.0], device=device)
    out, *sums = projection_with_statistics(x, weight, bias, residual=residual, sample_scale=scale, backend=backend)
    expected = torch.tensor([[[1021.5, 1043, 1010]], [[1085, 1172, 1040]]], device=device)
    torch.testing.assert_close(out, expected, rtol=0, atol=0)
    torch.testing.assert_close(sums[0], expected.sum((0, 1)), rtol=0, atol=0)
    torch.testing.assert_close(sums[1], expected.square().sum((0, 1)), rtol=1e-6, atol=0)


@pytest.mark.parametrize("backend", PROJECTION)
def test_a_dropped_sample_is_its_residual(backend):
    """Exactly; no gradient reaches its x, and the parameters get theirs from the others alone."""
    leaves, mask = make(Case((4, 9), 20, 37, residual=True, scaled=True), torch.float32, DEVICES[backend])
    grad_out = torch.randn_like(leaves["residual"])
    (out,), grads = run(projection, leaves, [grad_out], sample_scale=mask, backend=backend)
    dropped = mask == 0
    assert torch.equal(out[dropped], leaves["residual"][dropped])
    assert not grads["x"][dropped].count_nonzero() and torch.equal(grads["residual"], grad_out)
    kept = {name: t.detach()[~dropped] if name in ("x", "residual") else t for name, t in leaves.items()}
    _, kept_grads = run(projection, kept, [grad_out[~dropped]], sample_scale=mask[~dropped], backend=backend)
    for name, grad in kept_grads.items():
        torch.testing.assert_close(grads[name], grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", PROJECTION)
@pytest.mark.parametrize("layout", ["channels_last", "nchw", "slice", "expanded", "parameters"])
def test_any_strides(backend, layout):
    device = DEVICES[backend]
    leaves, mask = make(Case((2, 5, 6), 12, 12, residual=True, scaled=True), torch.float32, device)
    if layout == "parameters":
        leaves["weight"] = leaves["weight"].detach().t().contiguous().t().requires_grad_()
        leaves["bias"] = torch.randn(24, device=device)[::2].requires_grad_()
        mask = torch.stack([mask, mask], 1)[:, 0]
    for name in ("x", "residual") if layout != "parameters" else ():
        base = torch.randn(2, 12, 5, 6, device=device)
        leaves[name] = {
            "channels_last": base.to(memory_format=torch.channels_last).permute(0, 2, 3, 1),
            "nchw": base.permute(0, 2, 3, 1),
            "slice": torch.randn(2, 5, 6, 30, device=device)[..., 7:19],
            "expanded": base[:1, :, :1].permute(0, 2, 3, 1).expand(2, 5, 6, 12),
        }[layout].requires_grad_()
    for function in (projection, projection_with_statistics):
        results, grads = run(function, leaves, sample_scale=mask, backend=backend)
        expected, expected_grads = run(function, leaves, sample_scale=mask, backend="reference")
        assert results[0].is_contiguous() and expected[0].is_contiguous()
        torch.testing.assert_close(results, expected, rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(grads, expected_grads, rtol=1e-4, atol=1e-3)
    # As .sum().backward() gives it: one number, expanded.
    ones = [torch.ones((), device=device).expand(2, 5, 6, 12)]
    _, grads = run(projection, leaves, ones, sample_scale=mask, backend=backend)
    _, expected_grads = run(projection, leaves, ones, sample_scale=mask, backend="reference")
    torch.testing.assert_close(grads, expected_grads, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", PROJECTION)
def test_arguments_of_another_dtype(backend):
    """Weight and residual are used in the dtype of x, the bias as it is; gradients come in each leaf's own dtype."""
    leaves, mask = make(Case((3, 9), 20, 37, residual=True, scaled=True), torch.float32, DEVICES[backend])
    mixed = {**leaves, "x": leaves["x"].detach().bfloat16().requires_grad_()}
    results, grads = run(projection_with_statistics, mixed, sample_scale=mask, backend=backend)
    assert [t.dtype for t in results] == [torch.bfloat16, torch.float32, torch.float32]
    assert {name: grad.dtype for name, grad in grads.items()} == {name: t.dtype for name, t in mixed.items()}
    low = {name: t if name == "bias" else t.detach().bfloat16().requires_grad_() for name, t in mixed.items()}
    same, low_grads = run(projection_with_statistics, low, sample_scale=mask, backend=backend)
    assert all(map(torch.equal, results, same))
    assert all(torch.equal(grads[name], low_grads[name].to(grads[name].dtype)) for name in grads)


@pytest.mark.parametrize("backend", PROJECTION)
def test_biases_and_factors_keep_their_digits(backend):
    """Those that float32 has and bfloat16 has not are there after the residual took the leading 1 away."""
    device = DEVICES[backend]
    x = torch.zeros(2, 3, 5, device=device, dtype=torch.bfloat16)
    digits = torch.arange(1, 5, device=device) * 2.0**-12
    scale = torch.tensor([1, 1 + 2.0**-12], device=device)
    residual = torch.full((2, 3, 4), -1.0, device=device)
    out = projection(
        x, torch.zeros(4, 5, device=device), 1 + digits, residual=residual, sample_scale=scale, backend=backend
    )
    expected = torch.stack([digits, digits + 2.0**-12]).bfloat16()[:, None].expand(2, 3, 4)
    assert torch.equal(out, expected)


@pytest.mark.parametrize("backend", PROJECTION)
@pytest.mark.parametrize("tokens", [(0,), (0, 3, 3), (2, 0, 3)], ids=str)
def test_empty(backend, tokens):
    leaves, mask = make(Case(tokens, 4, 6, residual=True, scaled=True), torch.float32, DEVICES[backend])
    with poisoned_outputs():
        (out, *sums), grads = run(projection_with_statistics, leaves, sample_scale=mask, backend=backend)
        assert projection(**leaves, sample_scale=mask, backend=backend).shape == out.shape == (*tokens, 6)
    assert grads["x"].shape == (*tokens, 4) and grads["residual"].shape == (*tokens, 6)
    for zero in (*sums, grads["weight"], grads["bias"]):
        assert not zero.count_nonzero()


@pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")  # its interpreter's arithmetic is NumPy's
@pytest.mark.parametrize("value", [-math.inf, math.nan])
@pytest.mark.parametrize("backend", PROJECTION)
def test_what_is_not_finite_stays_in_its_token(backend, value):
    """In the result and, from grad_out, in the gradient of x: no tile mixes tokens."""
    leaves, _ = make(Case((2, 19), 20, 37), torch.float32, DEVICES[backend])
    clean = projection(**leaves, backend=backend)
    grad_out = torch.randn_like(clean)
    (clean_grad,) = torch.autograd.grad(clean, leaves["x"], grad_out)
    for token in ((0, 18), (1, 7)):
        x = leaves["x"].detach().clone()
        x[token][3] = value
        out = projection(**{**leaves, "x": x}, backend=backend)
        assert not out[token].isfinite().any()
        out[token] = clean[token]
        assert torch.equal(out, clean)
        poisoned = grad_out.clone()
        poisoned[token][5] = value
        (grad,) = torch.autograd.grad(projection(**leaves, backend=backend), leaves["x"], poisoned)
        assert not grad[token].isfinite().any()
        grad[token] = clean_grad[token]
        assert torch.equal(grad, clean_grad)


@pytest.mark.parametrize("channels", [1, 20, 33, 80])
@pytest.mark.parametrize("backend", PROJECTION)
def test_infinity_stays_in_its_channel(backend, channels):
    """Vectors that overlap, or that compute a channel more than once, must not mix or repeat what they sum."""
    leaves, _ = make(Case((2, 19), 5, channels, residual=True), torch.float32, DEVICES[backend])
    finite = projection_with_statistics(**leaves, backend=backend)
    for channel in range(0, channels, 7):
        residual = leaves["residual"].detach().clone()
        residual[1, 2, channel] = math.inf
        results = projection_with_statistics(**{**leaves, "residual": residual}, backend=backend)
        for actual, other in zip(results, finite, strict=True):
            where = (1, 2, channel) if actual.ndim == 3 else channel
            assert actual[where] == math.inf
            actual[where] = other[where]
            assert torch.equal(actual, other)


@pytest.mark.parametrize("backend", FUSED_PROJECTION)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=dtype_name)
def test_repeats_are_bit_identical(backend, dtype):
    leaves, mask = make(Case((2, 150), 37, 100, residual=True, scaled=True), dtype, DEVICES[backend])
    first, first_grads = run(projection_with_statistics, leaves, sample_scale=mask, backend=backend)
    for _ in range(2):
        results, grads = run(projection_with_statistics, leaves, sample_scale=mask, backend=backend)
        assert all(map(torch.equal, results, first))
        assert all(torch.equal(grads[name], first_grads[name]) for name in grads)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": None}, TypeError, r"x: expected a tensor \(B, …, C\), got NoneType"),
        ({"x": torch.ones(4)}, ValueError, r"x: expected \(B, …, C\) with C ≥ 1, got \(4,\)"),
        ({"x": torch.ones(2, 3, 0)}, ValueError, r"x: expected \(B, …, C\) with C ≥ 1, got \(2, 3, 0\)"),
        ({"x": torch.ones(2, 3, 4).int()}, TypeError, "x: expected dtype float32.* got torch.int32"),
        ({"weight": torch.ones(5, 2)}, ValueError, r"weight: expected \(C_out, C\) = \(≥ 1, 4\), got \(5, 2\)"),
        ({"weight": torch.ones(0, 4)}, ValueError, r"weight: expected \(C_out, C\) = \(≥ 1, 4\), got \(0, 4\)"),
        ({"weight": torch.ones(5, 4, 1, 1)}, ValueError, r"weight: expected 2 dimensions \(C_out, C\), got shape"),
        ({"weight": torch.ones(5, 4, device="meta")}, ValueError, "weight: expected device cpu as x, got meta"),
        ({"bias": torch.ones(4)}, ValueError, r"bias: expected \(C_out,\) = \(5,\), got \(4,\)"),
        ({"bias": 0.0}, TypeError, r"bias: expected a tensor \(C_out,\), got float"),
        ({"residual": True}, TypeError, r"residual: expected a tensor \(B, …, C_out\), got bool"),
        ({"residual": torch.ones(2, 5)}, ValueError, r"residual: expected 3 dimensions \(B, …, C_out\), got shape"),
        (
            {"residual": torch.ones(2, 3, 4)},
            ValueError,
            r"residual: expected \(B, …, C_out\) = \(2, 3, 5\), got \(2, 3, 4\)",
        ),
        ({"residual": torch.ones(2, 3, 5).int()}, TypeError, "residual: expected dtype float32.* got torch.int32"),
        ({"residual": torch.ones(2, 3, 5, device="meta")}, ValueError, "residual: expected device cpu as x, got meta"),
        ({"sample_scale": torch.ones(3)}, ValueError, r"sample_scale: expected \(B,\) = \(2,\), got \(3,\)"),
        ({"sample_scale": 0.5}, TypeError, r"sample_scale: expected a tensor \(B,\), got float"),
        (
            {"sample_scale": torch.ones(2, requires_grad=True)},
            ValueError,
            "sample_scale: expected a tensor without gradient .* got requires_grad=True",
        ),
        ({"backend": "gpu"}, ValueError, "backend: expected one of cuda, triton, cpu, reference, got 'gpu'"),
    ],
)
@pytest.mark.parametrize("function", [projection, projection_with_statistics], ids=["", "statistics"])
def test_bad_input_is_named(function, change, error, message):
    arguments = {"x": torch.ones(2, 3, 4), "weight": torch.ones(5, 4)}
    with pytest.raises(error, match=message):
        function(**{**arguments, **change})
