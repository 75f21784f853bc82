"""GELU of the Triton MLP: the exact form, and the one of 16-bit dtypes on a GPU, whose tanh has an error of its own."""

import math

import pytest
import torch
import torch.nn.functional as F
from backends import DEVICES, GPU
from fused_mlp_triton_cases import make, run

from container_kernels.ops.fused_mlp import fused_mlp
from container_kernels.testing import assert_within_budget, eager_fused_mlp

triton = pytest.importorskip("triton")
import triton.language as tl  # noqa: E402

from container_kernels.ops.fused_mlp.triton import gelu as form  # noqa: E402

DEVICE = DEVICES["triton"]
KINDS = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
DTYPES = list(KINDS)
HALF = [torch.bfloat16, torch.float16]
FAR = torch.tensor([20.0, 300.0, 1e4, 65504.0, 1e18, 3e38])
# Bounds of the fast form, by its documentation: of Φ, and of g and the derivative.
CDF_BOUND, BOUND = 6e-4, 2e-3
TANH_ERROR = tl.constexpr(2**-11)

# What the interpreter computes far from 0 overflows, as it does on a GPU.
pytestmark = pytest.mark.filterwarnings("ignore:(overflow|invalid value|divide by zero) encountered:RuntimeWarning")


@triton.jit
def exact_tanh(x):
    return 2.0 / (1.0 + tl.exp(-2.0 * x)) - 1.0


@triton.jit
def large_tanh(x):
    return exact_tanh(x) * (1.0 + TANH_ERROR)


@triton.jit
def small_tanh(x):
    return exact_tanh(x) * (1.0 - TANH_ERROR)


@triton.jit
def restless_tanh(x):
    """Both errors, one beside the other, by the last bit of x."""
    odd = (x.to(tl.int32, bitcast=True) & 1) == 1
    return exact_tanh(x) * tl.where(odd, 1.0 + TANH_ERROR, 1.0 - TANH_ERROR)


TANHS = {"exact": exact_tanh, "large": large_tanh, "small": small_tanh, "restless": restless_tanh}


@pytest.fixture(params=TANHS)
def fast(request, monkeypatch):
    """The form of GPUs in the interpreter, with a tanh that is off by what the instruction may be off by."""
    if GPU:
        pytest.skip("a compiled kernel cannot be changed; it has the instruction itself")
    monkeypatch.setattr(form, "EXACT", tl.constexpr(False))
    monkeypatch.setattr(form, "hardware_tanh", TANHS[request.param])


@triton.jit
def gelu_kernel(h_ptr, g_ptr, again_ptr, derivative_ptr, size, DTYPE: tl.constexpr):
    offsets = tl.program_id(0) * 1024 + tl.arange(0, 1024)
    h = tl.load(h_ptr + offsets, mask=offsets < size, other=0.0)
    again, derivative = form.gelu_and_derivative(h, DTYPE)
    tl.store(g_ptr + offsets, form.gelu(h, DTYPE), mask=offsets < size)
    tl.store(again_ptr + offsets, again, mask=offsets < size)
    tl.store(derivative_ptr + offsets, derivative, mask=offsets < size)


def evaluate(h, dtype):
    """(gelu, gelu as the backward computes it, gelu') of h, float32."""
    results = [torch.full_like(h, torch.nan) for _ in range(3)]
    gelu_kernel[(triton.cdiv(h.numel(), 1024),)](h, *results, h.numel(), DTYPE=KINDS[dtype])
    return results


def exact(h):
    """(gelu, gelu') of h in float64."""
    h = h.double().requires_grad_()
    g = F.gelu(h)
    return g.detach(), torch.autograd.grad(g.sum(), h)[0]


def near() -> torch.Tensor:
    return torch.linspace(-12, 12, 50_001).to(DEVICE)


def test_exact_form():
    h = torch.cat([near(), FAR.to(DEVICE), -FAR.to(DEVICE)])
    g, again, derivative = evaluate(h, torch.float32)
    exact_g, exact_derivative = exact(h)
    assert torch.equal(g, again)
    # Relative beside 1: 300 keeps no more digits after the point than float32 has.
    assert ((g - exact_g).abs() <= 1e-6 * (exact_g.abs() / 300).clamp(min=1)).all()
    assert ((derivative - exact_derivative).abs() <= 1e-6).all()


def test_interpreter_keeps_the_exact_form():
    if GPU:
        pytest.skip("nothing is interpreted")
    for half, single in zip(evaluate(near(), torch.bfloat16), evaluate(near(), torch.float32), strict=True):
        assert torch.equal(half, single)


def assert_fast_form(dtype):
    h = near()
    g, again, derivative = evaluate(h, dtype)
    exact_g, exact_derivative = exact(h)
    assert torch.equal(g, again)
    assert ((g - exact_g).abs() <= BOUND).all()
    assert ((g - exact_g).abs() <= CDF_BOUND * h.abs() * (1 + 1e-5)).all()
    assert ((derivative - exact_derivative).abs() <= BOUND).all()
    weights = torch.exp(-(h.double() ** 2) / 2)
    for error in (g - exact_g, derivative - exact_derivative):
        assert ((weights * error**2).sum() / weights.sum()).sqrt() <= 3e-4
    assert torch.equal(g[h > 4.3], h[h > 4.3]) and not g[h < -4.3].any()
    assert_far(dtype)


def assert_far(dtype):
    far = FAR.to(DEVICE)
    (g, _, derivative), (below, _, derivative_below) = evaluate(far, dtype), evaluate(-far, dtype)
    assert torch.equal(g, far) and (derivative == 1).all()
    assert not below.any() and not derivative_below.any()


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_fast_form_is_as_exact_as_it_says(fast, dtype):
    assert_fast_form(dtype)


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_device_is_as_exact_as_it_says(dtype):
    assert_fast_form(dtype) if GPU else assert_far(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_and_infinity(dtype):
    assert_keeps_nan_and_infinity(dtype)


def test_nan_and_infinity_in_the_fast_form(fast):
    assert_keeps_nan_and_infinity(torch.bfloat16)


def assert_keeps_nan_and_infinity(dtype):
    """As the definition: -inf · 0 is NaN."""
    h = torch.tensor([torch.nan, torch.inf, -torch.inf], device=DEVICE)
    g, again, derivative = evaluate(h, dtype)
    for values in (g, again):
        assert values.isnan().tolist() == [True, False, True]
        assert values[1] == torch.inf
    assert derivative[0].isnan()


def trained_like(shape, dtype):
    """What a trained network hands to its MLP, drawn: channels of very different scale, heavy tails, tokens that have
    much in common, biases below zero, weights with a few large rows."""
    x, w1, b1, w2, b2 = (t.detach().float() for t in make(shape, torch.float32))
    tails = torch.distributions.StudentT(3.0)
    x = tails.sample(x.shape).to(x) * torch.randn(x.shape[-1]).exp().to(x) + 2 * torch.randn(x.shape[-1]).to(x)
    w1 = w1 * torch.randn(w1.shape[0], 1).mul(0.7).exp().to(w1) / x.square().mean().sqrt()
    w2 = w2 * torch.randn(w2.shape[1]).mul(0.7).exp().to(w2)
    return [t.to(dtype).requires_grad_() for t in (x, w1)] + [
        t.to(kind).requires_grad_() for t, kind in ((b1 - 1, b1.dtype), (w2, dtype), (b2, b2.dtype))
    ]


def rms(error) -> float:
    return error.double().square().mean().sqrt().item()


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("draw", [make, trained_like])
def test_fast_form_is_within_the_budget(fast, draw, dtype):
    """Of the result and all gradients: the worst as everywhere, and the rms at most half more than eager's."""
    leaves = draw((2, 96, 32, 128, 32), dtype)
    scale = torch.rand(2, device=DEVICE)
    options = {"residual": True}
    exact, exact_grads = run(fused_mlp, leaves, scale, torch.float64, backend="reference", **options)
    eager, eager_grads = run(eager_fused_mlp, leaves, scale, **options)
    out, grads = run(fused_mlp, leaves, scale, backend="triton", **options)
    results = {"out": (out, eager, exact)}
    results |= {name: (grads[name], eager_grads[name], exact_grads[name]) for name in grads}
    for name, (ours, theirs, true) in results.items():
        assert_within_budget(name, ours, theirs, true)
        rounding = torch.finfo(dtype).eps / math.sqrt(12) * rms(true)
        assert rms(ours - true) <= 1.5 * rms(theirs - true) + rounding, name
