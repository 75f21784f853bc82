"""fused_mlp on the CPU: instruction sets, threads, the GELU by itself, shapes that divide the work."""

import math

import fused_mlp_cases as mlp
import pytest
import torch
import torch.nn.functional as F
from backends import DTYPES, dtype_name

from container_kernels import _extension, fused_mlp

LEVELS = _extension.cpu.supported_isas() if _extension.cpu else []
pytestmark = pytest.mark.skipif(not LEVELS, reason=f"no CPU kernels: {_extension.why_no_cpu}")

# Few tokens, whose hidden units are divided into groups; several panels, tiles and tasks, in parts of unequal size.
MLP_CASES = [
    mlp.Case((1, 49), 96, 520, 96, residual=True),
    mlp.Case((2, 25), 40, 300, 33, scaled=True),
    mlp.Case((5, 331), 20, 140, 20, residual=True, scaled=True),
]
# Tasks of several panels; weights beyond the second-level cache, which tasks of two panels share.
MANY_TOKENS = mlp.Case((3, 1700), 5, 6, 5, residual=True, scaled=True)
WIDE = mlp.Case((2, 230), 300, 900, 310, scaled=True)


@pytest.fixture
def set_isa():
    before = _extension.cpu.isa()
    yield _extension.cpu.set_isa
    _extension.cpu.set_isa(before)


@pytest.fixture
def set_threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", DTYPES["cpu"], ids=dtype_name)
@pytest.mark.parametrize("case", [*mlp.CASES[:4], *MLP_CASES], ids=str)
def test_every_instruction_set(set_isa, level, dtype, case):
    set_isa(level)
    mlp.assert_matches_float64("cpu", dtype, case)


@pytest.mark.parametrize("dtype", DTYPES["cpu"], ids=dtype_name)
@pytest.mark.parametrize("case", [MANY_TOKENS, WIDE], ids=str)
def test_large(dtype, case):
    mlp.assert_matches_float64("cpu", dtype, case)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=dtype_name)
@pytest.mark.parametrize("case", [*MLP_CASES, MANY_TOKENS, WIDE], ids=str)
def test_same_bits_for_any_number_of_threads(set_threads, dtype, case):
    leaves, mask = mlp.make(case, dtype, "cpu")
    results = []
    for count in (1, 2, 3, 5):
        set_threads(count)
        out, grads = mlp.run(fused_mlp, leaves, residual=case.residual, sample_scale=mask, backend="cpu")
        results.append([out, *grads.values()])
    for others in results[1:]:
        assert all(map(torch.equal, results[0], others))


def gelu(values):
    """The activation alone of (n,) values, and its derivative: a token for each, with weights that are 1."""
    x = values.view(-1, 1, 1).requires_grad_()
    one, zero = values.new_ones(1, 1), values.new_zeros(1)
    out = fused_mlp(x, one, zero, one, zero, backend="cpu")
    return out.detach().flatten(), torch.autograd.grad(out.sum(), x)[0].flatten()


def exact_gelu(values):
    """The same in float64; from erfc, which keeps the digits of the negative side."""
    x = values.double()
    distribution = torch.special.erfc(-x * math.sqrt(0.5)) / 2
    return x * distribution, distribution + x * torch.exp(-x.square() / 2) / math.sqrt(2 * math.pi)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=dtype_name)
def test_gelu_over_the_whole_range(set_isa, level, dtype):
    """Off by no more than twice PyTorch's largest error on [−12, 12]; near 0, where it is x / 2, in the last digits."""
    set_isa(level)
    values = torch.linspace(-12, 12, 200_001, dtype=torch.float64).to(dtype)
    x = values.clone().requires_grad_()
    y = F.gelu(x)
    eager = y.detach(), torch.autograd.grad(y.sum(), x)[0]
    for actual, other, exact in zip(gelu(values), eager, exact_gelu(values), strict=True):
        error, eager_error = ((result.double() - exact).abs().max() for result in (actual, other))
        assert error <= 2 * eager_error
    tiny = 10.0 ** torch.arange(-37, -3, dtype=torch.float64)
    tiny = torch.cat([tiny, -tiny]).to(dtype)
    torch.testing.assert_close(gelu(tiny)[0].double(), exact_gelu(tiny)[0], rtol=4 * torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", DTYPES["cpu"], ids=dtype_name)
def test_gelu_of_special_values(set_isa, level, dtype):
    set_isa(level)
    huge = torch.finfo(dtype).max
    out, derivative = gelu(torch.tensor([0.0, -0.0, huge, -huge, 100, -100, math.inf, math.nan], dtype=dtype))
    expected = torch.tensor([0, 0, huge, 0, 100, 0, math.inf, math.nan], dtype=dtype)
    torch.testing.assert_close(out, expected, rtol=0, atol=0, equal_nan=True)
    expected = torch.tensor([0.5, 0.5, 1, 0, 1, 0], dtype=dtype)
    torch.testing.assert_close(derivative[:6], expected, rtol=0, atol=0)
    assert derivative[7].isnan()


def test_the_hidden_layer_is_rounded():
    """To the dtype of x, as by two linear layers: here there is one unit, which the output is three times."""
    x = torch.randn(1, 200, 1).bfloat16()
    one, zero = torch.ones(1, 1).bfloat16(), torch.zeros(1)
    out = fused_mlp(x, one, zero, one * 3, zero + 1 / 512, backend="cpu")
    hidden = F.gelu(x.float()).bfloat16().float()
    assert torch.equal(out, (hidden * 3 + 1 / 512).bfloat16())
