"""The projection on the CPU: instruction sets, threads, shapes that divide the work."""

import pytest
import torch
from backends import DTYPES, dtype_name
from projection_cases import CASES, Case, assert_statistics_match_float64, make, run

from container_kernels import _extension, projection_with_statistics

LEVELS = _extension.cpu.supported_isas() if _extension.cpu else []
pytestmark = pytest.mark.skipif(not LEVELS, reason=f"no CPU kernels: {_extension.why_no_cpu}")

# Several panels, tiles and tasks, in parts of unequal size.
LARGE_CASES = [Case((1, 49), 96, 260, residual=True), Case((5, 331), 36, 140, residual=True, scaled=True)]
# Tasks of several panels; weights beyond the second-level cache, which tasks of two panels share.
THREADED_CASES = [*LARGE_CASES, Case((3, 1700), 5, 6, residual=True), Case((2, 230), 300, 900, residual=True)]


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
@pytest.mark.parametrize("case", [*CASES[:4], *LARGE_CASES], ids=str)
def test_every_instruction_set(set_isa, level, dtype, case):
    set_isa(level)
    assert_statistics_match_float64("cpu", dtype, case)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=dtype_name)
@pytest.mark.parametrize("case", THREADED_CASES, ids=str)
def test_same_bits_for_any_number_of_threads(set_threads, dtype, case):
    leaves, mask = make(case, dtype, "cpu")
    results = []
    for count in (1, 2, 3, 5):
        set_threads(count)
        outs, grads = run(projection_with_statistics, leaves, sample_scale=mask, backend="cpu")
        results.append([*outs, *grads.values()])
    for others in results[1:]:
        assert all(map(torch.equal, results[0], others))
