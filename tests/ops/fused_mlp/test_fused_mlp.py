"""The fused MLP on every backend: numbers, gradients, layouts, what it keeps for backward, errors."""

import math

import pytest
import torch
from backends import DEVICES, DTYPES, FUSED_MLP, MLP, backends_and_dtypes, dtype_name
from fused_mlp_cases import CASES, LONG, Case, assert_matches_float64, make, promoted, run

from container_kernels import fused_mlp
from container_kernels.testing import assert_within_budget, eager_fused_mlp, poisoned_outputs


@pytest.mark.parametrize("case", CASES, ids=str)
def test_eager_is_the_same(case):
    """What budgets are made of: a baseline that were wrong would allow anything."""
    leaves, mask = make(case, torch.float64, "cpu")
    options = {"residual": case.residual, "sample_scale": mask}
    torch.testing.assert_close(
        run(eager_fused_mlp, leaves, **options), run(fused_mlp, leaves, **options, backend="reference")
    )


@pytest.mark.parametrize("case", [*CASES, LONG], ids=str)
@pytest.mark.parametrize(("backend", "dtype"), backends_and_dtypes(MLP), ids=dtype_name)
def test_matches_float64(backend, dtype, case):
    assert_matches_float64(backend, dtype, case)


@pytest.mark.parametrize("backend", MLP)
def test_by_hand(backend):
    """x = ±1, hidden (x, 2x + 1), output 10·h₁ + 100·h₂ + 0.5, half of it, and x."""
    device = DEVICES[backend]
    x = torch.tensor([[1.0], [-1.0]], device=device)
    w1, b1 = torch.tensor([[1.0], [2.0]], device=device), torch.tensor([0.0, 1.0], device=device)
    w2, b2 = torch.tensor([[10.0, 100.0]], device=device), torch.tensor([0.5], device=device)
    half = torch.full((2,), 0.5, device=device)
    out = fused_mlp(x, w1, b1, w2, b2, residual=True, sample_scale=half, backend=backend)

    def gelu(z):
        return z * (1 + math.erf(z / math.sqrt(2))) / 2

    expected = [0.5 * (10 * gelu(z) + 100 * gelu(2 * z + 1) + 0.5) + z for z in (1.0, -1.0)]
    torch.testing.assert_close(out.flatten().cpu(), torch.tensor(expected))


@pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")  # its interpreter's arithmetic is NumPy's
@pytest.mark.parametrize(("backend", "dtype"), backends_and_dtypes(MLP), ids=dtype_name)
def test_gelu_where_it_saturates(backend, dtype):
    """Far from 0 it is z or 0, with derivative 1 or 0, and overflows nothing; between, its tails."""
    x = torch.cat([torch.linspace(-9, 9, 91), torch.tensor([-6e4, -300.0, -40, 40, 300, 6e4])])[:, None]
    one = torch.ones(1, 1)
    leaves = {name: t.to(DEVICES[backend], dtype).requires_grad_() for name, t in (("x", x), ("w1", one), ("w2", one))}
    leaves |= {"b1": None, "b2": None}
    ones = torch.ones_like(leaves["x"])
    exact, exact_grads = run(fused_mlp, promoted(leaves), ones.double(), backend="reference")
    eager, eager_grads = run(eager_fused_mlp, leaves, ones)
    out, grads = run(fused_mlp, leaves, ones, backend=backend)
    for part in (slice(0, 91), slice(91, None)):
        assert_within_budget("out", out[part], eager[part], exact[part])
        assert_within_budget("gradient", grads["x"][part], eager_grads["x"][part], exact_grads["x"][part])


@pytest.mark.parametrize("backend", MLP)
def test_a_dropped_sample_is_its_residual(backend):
    """Exactly, and its gradient too; the parameters get theirs from the others alone."""
    case = Case((4, 9), 20, 37, 20, residual=True, scaled=True)
    leaves, mask = make(case, torch.float32, DEVICES[backend])
    grad_out = torch.randn_like(leaves["x"])
    out, grads = run(fused_mlp, leaves, grad_out, residual=True, sample_scale=mask, backend=backend)
    dropped = mask == 0
    assert torch.equal(out[dropped], leaves["x"][dropped])
    assert torch.equal(grads["x"][dropped], grad_out[dropped])
    kept = {**leaves, "x": leaves["x"].detach()[~dropped]}
    _, kept_grads = run(
        fused_mlp, kept, grad_out[~dropped], residual=True, sample_scale=mask[~dropped], backend=backend
    )
    for name, grad in kept_grads.items():
        torch.testing.assert_close(grads[name], grad, rtol=1e-5, atol=1e-5)
    none = fused_mlp(**leaves, sample_scale=torch.zeros_like(mask), backend=backend)
    assert not none.count_nonzero()


@pytest.mark.parametrize("backend", MLP)
@pytest.mark.parametrize("layout", ["channels_last", "nchw", "slice", "expanded", "transposed weights"])
def test_any_strides(backend, layout):
    device = DEVICES[backend]
    leaves, mask = make(Case((2, 5, 6), 12, 20, 12, scaled=True), torch.float32, device)
    base = torch.randn(2, 12, 5, 6, device=device)
    x = {
        "channels_last": base.to(memory_format=torch.channels_last).permute(0, 2, 3, 1),
        "nchw": base.permute(0, 2, 3, 1),
        "slice": torch.randn(2, 5, 6, 30, device=device)[..., 7:19],
        "expanded": base[:1, :, :1].permute(0, 2, 3, 1).expand(2, 5, 6, 12),
    }.get(layout)
    if x is None:
        for name in ("w1", "w2"):
            leaves[name] = leaves[name].detach().t().contiguous().t().requires_grad_()
        leaves["b1"] = torch.randn(40, device=device)[::2].requires_grad_()
        mask = torch.stack([mask, mask], 1)[:, 0]
    else:
        leaves["x"] = x.requires_grad_()
    options = {"residual": True, "sample_scale": mask}
    # As .sum().backward() gives it: one number, expanded.
    grad_out = torch.ones((), device=device).expand(2, 5, 6, 12) if layout == "expanded" else None
    out, grads = run(fused_mlp, leaves, grad_out, **options, backend=backend)
    expected, expected_grads = run(fused_mlp, leaves, grad_out, **options, backend="reference")
    assert out.is_contiguous() and expected.is_contiguous()
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(grads, expected_grads, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", MLP)
def test_parameters_of_another_dtype(backend):
    """Matrices are used in the dtype of x, biases and factors as they are; gradients come in each leaf's own dtype."""
    leaves, mask = make(Case((3, 9), 20, 37, 20, scaled=True), torch.float32, DEVICES[backend])
    mixed = {**leaves, "x": leaves["x"].detach().bfloat16().requires_grad_()}
    out, grads = run(fused_mlp, mixed, residual=True, sample_scale=mask, backend=backend)
    assert out.dtype == torch.bfloat16
    assert {name: grad.dtype for name, grad in grads.items()} == {name: t.dtype for name, t in mixed.items()}
    low = {name: t.detach().bfloat16().requires_grad_() if name[0] == "w" else t for name, t in mixed.items()}
    same, low_grads = run(fused_mlp, low, residual=True, sample_scale=mask, backend=backend)
    assert torch.equal(out, same)
    assert all(torch.equal(grads[name], low_grads[name].to(grads[name].dtype)) for name in grads)
    # One sum of float32 numbers, were it not for the hidden layer: rounded once as x, weights and sums are.
    exact, exact_grads = run(fused_mlp, promoted(low), residual=True, sample_scale=mask.double(), backend="reference")
    eager, eager_grads = run(eager_fused_mlp, low, residual=True, sample_scale=mask)
    assert_within_budget("out", out, eager, exact)
    for name in exact_grads:
        assert_within_budget(f"gradient of {name}", low_grads[name], eager_grads[name], exact_grads[name])


@pytest.mark.parametrize("backend", MLP)
def test_biases_and_factors_keep_their_digits(backend):
    """Those that float32 has and bfloat16 has not are there after the residual took the leading 1 away."""
    device = DEVICES[backend]
    x = torch.full((2, 3, 4), -1.0, device=device, dtype=torch.bfloat16)
    w1, w2 = torch.zeros(5, 4, device=device), torch.zeros(4, 5, device=device)
    digits = torch.arange(1, 5, device=device) * 2.0**-12
    scale = torch.tensor([1, 1 + 2.0**-12], device=device)
    out = fused_mlp(x, w1, None, w2, 1 + digits, residual=True, sample_scale=scale, backend=backend)
    expected = torch.stack([digits, digits + 2.0**-12]).bfloat16()[:, None].expand(2, 3, 4)
    assert torch.equal(out, expected)


@pytest.mark.parametrize("backend", MLP)
@pytest.mark.parametrize("tokens", [(0,), (0, 3, 3), (2, 0, 3)], ids=str)
def test_empty(backend, tokens):
    leaves, mask = make(Case(tokens, 4, 6, 4, scaled=True), torch.float32, DEVICES[backend])
    with poisoned_outputs():
        out, grads = run(fused_mlp, leaves, residual=True, sample_scale=mask, backend=backend)
    assert out.shape == grads["x"].shape == (*tokens, 4)
    assert not any(grads[name].count_nonzero() for name in ("w1", "b1", "w2", "b2"))


@pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")  # its interpreter's arithmetic is NumPy's
@pytest.mark.parametrize("value", [-math.inf, math.nan])
@pytest.mark.parametrize("backend", MLP)
def test_what_is_not_finite_stays_in_its_token(backend, value):
    """In the result and, from grad_out, in the gradient of x: no tile mixes tokens."""
    leaves, _ = make(Case((2, 19), 20, 37, 33), torch.float32, DEVICES[backend])
    clean = fused_mlp(**leaves, backend=backend)
    grad_out = torch.randn_like(clean)
    (clean_grad,) = torch.autograd.grad(clean, leaves["x"], grad_out)
    for token in ((0, 18), (1, 7)):
        x = leaves["x"].detach().clone()
        x[token][3] = value
        out = fused_mlp(**{**leaves, "x": x}, backend=backend)
        assert not out[token].isfinite().any()
        out[token] = clean[token]
        assert torch.equal(out, clean)
        poisoned = grad_out.clone()
        poisoned[token][5] = value
        (grad,) = torch.autograd.grad(fused_mlp(**leaves, backend=backend), leaves["x"], poisoned)
        assert not grad[token].isfinite().any()
        grad[token] = clean_grad[token]
        assert torch.equal(grad, clean_grad)


@pytest.mark.parametrize("backend", FUSED_MLP)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=dtype_name)
def test_repeats_are_bit_identical(backend, dtype):
    leaves, mask = make(Case((2, 70), 37, 60, 20, scaled=True), dtype, DEVICES[backend])
    first, first_grads = run(fused_mlp, leaves, sample_scale=mask, backend=backend)
    for _ in range(2):
        out, grads = run(fused_mlp, leaves, sample_scale=mask, backend=backend)
        assert torch.equal(out, first) and all(torch.equal(grads[name], first_grads[name]) for name in grads)


GRADIENT_CASES = [Case((2, 3), 3, 4, 3, residual=True, scaled=True), Case((3,), 2, 3, 4, bias=False)]


def function_of_leaves(case, backend):
    leaves, mask = make(case, torch.float64, DEVICES[backend])
    wanted = [name for name, t in leaves.items() if t is not None]

    def function(*tensors):
        arguments = {**leaves, **dict(zip(wanted, tensors, strict=True))}
        return fused_mlp(**arguments, residual=case.residual, sample_scale=mask, backend=backend)

    return function, [leaves[name] for name in wanted]


@pytest.mark.parametrize("case", GRADIENT_CASES, ids=str)
@pytest.mark.parametrize("backend", [name for name in MLP if torch.float64 in DTYPES[name]])
def test_gradcheck(backend, case):
    assert torch.autograd.gradcheck(*function_of_leaves(case, backend))


@pytest.mark.parametrize("case", GRADIENT_CASES, ids=str)
@pytest.mark.parametrize("backend", [name for name in MLP if torch.float64 in DTYPES[name]])
def test_gradgradcheck(backend, case):
    assert torch.autograd.gradgradcheck(*function_of_leaves(case, backend))


@pytest.mark.parametrize("backend", FUSED_MLP)
def test_third_derivative(backend):
    """Of a small network in one weight: derivatives of derivatives go on."""
    leaves, _ = make(Case((2, 3), 4, 5, 4), torch.float32, DEVICES[backend])
    results = []
    for name in (backend, "reference"):
        (derivative,) = torch.autograd.grad(
            fused_mlp(**leaves, backend=name).sin().sum(), leaves["w1"], create_graph=True
        )
        for _ in range(2):
            (derivative,) = torch.autograd.grad(derivative.sum(), leaves["w1"], create_graph=True)
        results.append(derivative)
    assert results[0].abs().max() > 0.1
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("wanted", ["x", "w1", "b1", "w2", "b2"])
@pytest.mark.parametrize("backend", FUSED_MLP)
def test_one_gradient_at_a_time(backend, wanted):
    """A leaf that is frozen gets none, and changes nothing for the one that is not."""
    leaves, mask = make(Case((2, 9), 20, 37, 20, scaled=True), torch.float32, DEVICES[backend])
    _, together = run(fused_mlp, leaves, residual=True, sample_scale=mask, backend=backend)
    alone = {name: t if name == wanted else t.detach() for name, t in leaves.items()}
    _, grads = run(fused_mlp, alone, residual=True, sample_scale=mask, backend=backend)
    torch.testing.assert_close(grads[wanted], together[wanted])
    assert list(grads) == [wanted]


@pytest.mark.parametrize("backend", MLP)
def test_what_is_kept_for_backward(backend):
    """Of the hidden layer nothing, where it is fused; the reference shows that the test would see it."""
    case = Case((2, 50), 8, 64, 8, residual=True, scaled=True)
    leaves, mask = make(case, torch.float32, DEVICES[backend])
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        fused_mlp(**leaves, residual=True, sample_scale=mask, backend=backend)
    tokens = math.prod(case.tokens)
    if backend == "reference":
        assert max(saved) == tokens * case.hidden
    else:
        assert max(saved) == tokens * case.channels
        assert sum(saved) == sum(leaves[name].numel() for name in ("x", "w1", "b1", "w2")) + mask.numel()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": None}, TypeError, r"x: expected a tensor \(B, …, C\), got NoneType"),
        ({"x": torch.ones(4)}, ValueError, r"x: expected \(B, …, C\) with C ≥ 1, got \(4,\)"),
        ({"x": torch.tensor(1.0)}, ValueError, r"x: expected \(B, …, C\) with C ≥ 1, got \(\)"),
        ({"x": torch.ones(2, 3, 0)}, ValueError, r"x: expected \(B, …, C\) with C ≥ 1, got \(2, 3, 0\)"),
        ({"x": torch.ones(2, 3, 4).int()}, TypeError, "x: expected dtype float32.* got torch.int32"),
        ({"x": torch.ones(2, 3, 4).to_sparse()}, TypeError, "x: expected a dense tensor, got layout torch.sparse_coo"),
        ({"w1": torch.ones(6, 5)}, ValueError, r"w1: expected \(hidden, C\) = \(≥ 1, 4\), got \(6, 5\)"),
        ({"w1": torch.ones(0, 4)}, ValueError, r"w1: expected \(hidden, C\) = \(≥ 1, 4\), got \(0, 4\)"),
        ({"w1": torch.ones(6, 4, 1, 1)}, ValueError, r"w1: expected 2 dimensions \(hidden, C\), got .* \(6, 4, 1, 1\)"),
        ({"w1": torch.ones(6, 4, device="meta")}, ValueError, "w1: expected device cpu as x, got meta"),
        ({"w1": torch.ones(6, 4).to(torch.complex64)}, TypeError, "w1: expected dtype float32.* got torch.complex64"),
        ({"b1": torch.ones(4)}, ValueError, r"b1: expected \(hidden,\) = \(6,\), got \(4,\)"),
        ({"b1": 0.0}, TypeError, r"b1: expected a tensor \(hidden,\), got float"),
        ({"w2": torch.ones(5, 4)}, ValueError, r"w2: expected \(C_out, hidden\) = \(≥ 1, 6\), got \(5, 4\)"),
        ({"w2": torch.ones(0, 6)}, ValueError, r"w2: expected \(C_out, hidden\) = \(≥ 1, 6\), got \(0, 6\)"),
        ({"residual": True}, ValueError, r"w2: expected \(C, hidden\) = \(4, 6\), got \(5, 6\)"),
        ({"residual": torch.ones(2, 3, 4)}, TypeError, r"residual: expected True \(add x\) or False, got Tensor"),
        ({"residual": None}, TypeError, r"residual: expected True \(add x\) or False, got NoneType"),
        ({"b2": torch.ones(6)}, ValueError, r"b2: expected \(C_out,\) = \(5,\), got \(6,\)"),
        ({"b2": torch.ones(5, device="meta")}, ValueError, "b2: expected device cpu as x, got meta"),
        ({"sample_scale": 0.5}, TypeError, r"sample_scale: expected a tensor \(B,\), got float"),
        ({"sample_scale": torch.ones(2, 1)}, ValueError, r"sample_scale: expected 1 dimensions \(B,\)"),
        ({"sample_scale": torch.ones(3)}, ValueError, r"sample_scale: expected \(B,\) = \(2,\), got \(3,\)"),
        ({"sample_scale": torch.ones(2) > 0}, TypeError, "sample_scale: expected dtype float32.* got torch.bool"),
        ({"sample_scale": torch.ones(2, device="meta")}, ValueError, "sample_scale: expected device cpu as x"),
        (
            {"sample_scale": torch.ones(2, requires_grad=True)},
            ValueError,
            "sample_scale: expected a tensor without gradient .* got requires_grad=True",
        ),
        ({"backend": "gpu"}, ValueError, "backend: expected one of cuda, triton, cpu, reference, got 'gpu'"),
    ],
)
def test_bad_input_is_named(change, error, message):
    arguments = {
        "x": torch.ones(2, 3, 4),
        "w1": torch.ones(6, 4),
        "b1": torch.ones(6),
        "w2": torch.ones(5, 6),
        "b2": torch.ones(5),
    }
    with pytest.raises(error, match=message):
        fused_mlp(**{**arguments, **change})
