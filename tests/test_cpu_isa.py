# SPDX-License-Identifier: MIT
"""The CPU kernels at every instruction set level that this machine can run, not only the highest."""

import pytest
import torch

from container_kernels import _extension, context_aggregation, local_aggregation
from container_kernels.testing import (
    MixCase,
    assert_within_budget,
    eager_context_aggregation,
    eager_local_aggregation,
    poisoned_outputs,
)

LEVELS = _extension.cpu.supported_isas() if _extension.cpu else []
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]

MIX_CASES = [
    MixCase(kernel=(5, 3), dense=True, head_dim=20),  # every term; a head of whole and broken vectors
    MixCase(kernel=(3, 7), head_dim=3, heads=3, packed=False),  # a head narrower than a vector
    MixCase(batch=1, height=7, width=7, head_dim=64, heads=1),
    MixCase(batch=1, height=25, width=21, heads=1, head_dim=32, dense=True),  # tiles of keys, tasks that share a head
]
# B, H, W, C, kh, kw: groups of two vectors, of one, a broken one, less than one; every width of the window.
IMAGES = [(2, 9, 8, 48, 5, 5), (1, 3, 16, 37, 3, 7), (2, 4, 5, 3, 7, 3), (1, 20, 2, 16, 1, 1)]


@pytest.fixture(params=LEVELS)
def level(request):
    before = _extension.cpu.isa()
    _extension.cpu.set_isa(request.param)
    yield request.param
    _extension.cpu.set_isa(before)


def budget_factor(level):
    # PyTorch fuses multiply and add wherever the processor can; without that, a sum has two roundings per term.
    return 4.0 if level == "baseline" else 2.0


def random_like(out):
    return torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).bfloat16()


def run_mix(function, inputs, **options):
    qkv, arguments = inputs.arguments()
    # alpha and beta as numbers: their gradients are sums over everything, which tests/ops budgets.
    arguments |= {"alpha": 0.75, "beta": -0.5}
    out = function(*qkv, **arguments, **options)
    return out, inputs.gradients(out, random_like(out))


def run_local(function, leaves, **options):
    out = function(*leaves, **options)
    return out, dict(
        zip(("x", "weight", "bias"), torch.autograd.grad(out, leaves, random_like(out).to(out)), strict=True)
    )


def local_leaves(shape, dtype):
    *image, kh, kw = shape
    leaves = torch.randn(image), torch.randn(image[-1], kh, kw) / (kh * kw) ** 0.5, torch.randn(image[-1])
    return [t.to(dtype).requires_grad_() for t in leaves]


def check(level, actual, eager, exact):
    (out, grads), (eager_out, eager_grads), (exact_out, exact_grads) = actual, eager, exact
    factor = budget_factor(level)
    assert_within_budget("out", out, eager_out, exact_out, factor=factor)
    assert grads.keys() == exact_grads.keys()
    for name, grad in grads.items():
        assert_within_budget(f"gradient of {name}", grad, eager_grads[name], exact_grads[name], factor=factor)


@pytest.mark.parametrize("case", MIX_CASES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_mix_matches_float64(level, dtype, case):
    inputs = case.make(dtype, grad=True)
    exact = run_mix(context_aggregation, inputs.double(), backend="reference")
    eager = run_mix(eager_context_aggregation, inputs.clone())
    with poisoned_outputs():
        check(level, run_mix(context_aggregation, inputs, backend="cpu"), eager, exact)


@pytest.mark.parametrize("shape", IMAGES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_local_matches_float64(level, dtype, shape):
    leaves = local_leaves(shape, dtype)
    promoted = [t.detach().double().requires_grad_() for t in leaves]
    exact = run_local(local_aggregation, promoted, backend="reference")
    eager = run_local(eager_local_aggregation, leaves)
    with poisoned_outputs():
        check(level, run_local(local_aggregation, leaves, backend="cpu"), eager, exact)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_same_bits_for_any_number_of_threads(level, threads):
    inputs = MIX_CASES[-1].make(torch.float32, grad=True)
    leaves = local_leaves((2, 30, 17, 40, 5, 5), torch.float32)

    def results():
        (out, grads), (local, local_grads) = (
            run_mix(context_aggregation, inputs, backend="cpu"),
            run_local(local_aggregation, leaves, backend="cpu"),
        )
        return [out, *grads.values(), local, *local_grads.values()]

    expected = results()
    for count in (1, 2, 3, 5):
        threads(count)
        assert all(map(torch.equal, results(), expected)), f"{count} threads"


def test_bfloat16_and_half_round_like_torch(level):
    """A 1×1 filter of one: every 16-bit pattern must survive. One of a third: results must round as torch's do."""
    for dtype in (torch.bfloat16, torch.float16):
        patterns = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
        x = patterns.view(1, 1, -1, 16)
        same = local_aggregation(x, torch.ones(16, 1, 1, dtype=dtype), backend="cpu").flatten()
        assert torch.equal(same.isnan(), patterns.isnan())
        number = ~patterns.isnan()
        assert torch.equal(same[number], patterns[number])  # but for the sign of zero

        factor = torch.tensor(1 / 3).to(dtype)
        scaled = local_aggregation(x, factor.expand(16, 1, 1).contiguous(), backend="cpu").flatten()
        expected = (patterns.float() * factor.float()).to(dtype)
        assert torch.equal(scaled[number], expected[number])


def test_the_highest_level_is_the_default():
    built = _extension.build_record["cpu"]["isa_levels"]
    capability = torch.backends.cpu.get_cpu_capability()
    expected = {"AVX512": "v4", "AVX2": "v3"}.get(capability, "baseline")
    assert LEVELS[0] == "baseline" and set(LEVELS) <= set(built)
    if expected in built:
        assert _extension.cpu.isa() == LEVELS[-1] == expected


def test_levels_run_different_code():
    """Without this, `set_isa` could do nothing and every test above would still pass."""
    if len(LEVELS) == 1:
        pytest.skip("this processor has no level above the baseline")
    inputs = MIX_CASES[0].make(torch.float32)
    leaves = [t.detach() for t in local_leaves(IMAGES[0], torch.float32)]
    qkv, arguments = inputs.arguments()
    outputs = []
    for name in (LEVELS[0], LEVELS[-1]):
        _extension.cpu.set_isa(name)
        assert _extension.cpu.isa() == name
        outputs.append(
            (context_aggregation(*qkv, **arguments, backend="cpu"), local_aggregation(*leaves, backend="cpu"))
        )
    for low, high in zip(*outputs, strict=True):
        assert not torch.equal(low, high)
        torch.testing.assert_close(low, high)


def test_an_unknown_level_is_refused():
    with pytest.raises(ValueError, match=r"isa: expected one of baseline.*, got v9"):
        _extension.cpu.set_isa("v9")
