"""Deformable attention on the CPU: instruction sets, bands of rows, values with and without packing."""

import random

import pytest
import torch
from backends import DTYPES, dtype_name
from deformable_attention_cases import CASES, Case, assert_matches_float64, make, random_case, run

from container_kernels import _extension, deformable_attention

LEVELS = _extension.cpu.supported_isas() if _extension.cpu else []
pytestmark = pytest.mark.skipif(not LEVELS, reason=f"no CPU kernels: {_extension.why_no_cpu}")

# Several blocks of queries, the last one not full; more points than a block holds.
BLOCKS = Case(1, ((6, 7), (3, 2)), 300, 2, 12, 4)
MANY_POINTS = Case(1, ((6, 7),), 3, 2, 12, 600)
# A level of 2 MiB: several bands by their size alone, and of rows as wide as a band.
BANDS = Case(1, ((80, 100), (2, 3)), 150, 1, 64, 4)
WIDE_ROWS = Case(1, ((3, 1200),), 60, 1, 250, 4)


@pytest.fixture
def set_isa():
    before = _extension.cpu.isa()
    yield _extension.cpu.set_isa
    _extension.cpu.set_isa(before)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", DTYPES["cpu"], ids=dtype_name)
def test_every_instruction_set(set_isa, level, dtype):
    set_isa(level)
    # PyTorch fuses multiply and add wherever the processor can; without that, a sum has two roundings per term.
    factor = 4.0 if level == "baseline" else 2.0
    for case in (*CASES, BLOCKS):
        assert_matches_float64(case, make(case, dtype, "cpu"), "cpu", factor=factor)


def test_levels_run_different_code(set_isa):
    """Without this, `set_isa` could do nothing and the test above would still pass."""
    if len(LEVELS) == 1:
        pytest.skip("this processor has no level above the baseline")
    leaves = make(BLOCKS, torch.float32, "cpu")
    results = []
    for level in (LEVELS[0], LEVELS[-1]):
        set_isa(level)
        out, grads = run(deformable_attention, BLOCKS, leaves, backend="cpu")
        results.append((out, *grads.values()))
    for low, high in zip(*results, strict=True):
        assert not torch.equal(low, high)
        torch.testing.assert_close(low, high, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", [MANY_POINTS, BANDS, WIDE_ROWS], ids=str)
def test_blocks_and_bands(case):
    # PyTorch adds 600 points in pairs of pairs, a kernel one after the other.
    factor = 4.0 if case == MANY_POINTS else 2.0
    assert_matches_float64(case, make(case, torch.float32, "cpu"), "cpu", factor=factor)


@pytest.mark.parametrize("case", [BLOCKS, BANDS], ids=str)
def test_same_bits_for_any_number_of_threads(case):
    """More threads divide levels into more bands."""
    leaves = make(case, torch.bfloat16, "cpu", torch.float32)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 5, 16):
            torch.set_num_threads(count)
            out, grads = run(deformable_attention, case, leaves, backend="cpu")
            results.append((out, *grads.values()))
    finally:
        torch.set_num_threads(threads)
    assert all(all(map(torch.equal, result, results[0])) for result in results)


@pytest.mark.parametrize("queries", [1, 500])
def test_packing_changes_no_bit(queries):
    """Values are read as they are for few queries, and where a head's pixels lie side by side."""
    case = Case(2, ((9, 8), (4, 4)), queries, 3, 16, 2)
    leaves = make(case, torch.float32, "cpu")
    side_by_side = leaves["value"].detach().transpose(1, 2).contiguous().transpose(1, 2)
    assert side_by_side.stride(1) == 16
    expected = run(deformable_attention, case, leaves, backend="cpu")
    actual = run(deformable_attention, case, {**leaves, "value": side_by_side.requires_grad_()}, backend="cpu")
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def test_many_random_problems():
    """Wide heads and many queries, in every dtype."""
    draw = random.Random(1)
    for _ in range(40):
        case = random_case(draw, most_head_dim=260, most_queries=200)
        assert_matches_float64(case, make(case, draw.choice(DTYPES["cpu"]), "cpu"), "cpu", factor=3.0)
