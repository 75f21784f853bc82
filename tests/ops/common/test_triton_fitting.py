"""The choice of tiles by what a compiler made of them, on kernels that need no compiler."""

from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton")
from triton.runtime.errors import OutOfResources

from container_kernels.ops.common import triton_fitting
from container_kernels.ops.common.triton_fitting import fitting

TOO_LARGE = "needs more shared memory than there is"
PARAMETERS = {"x_ptr": True, "size": True, "strides": True, "rows": False}  # whether they are specialized


class Compiled:
    def __init__(self, fact):
        self.fact = fact

    def _init_handles(self):
        if self.fact == TOO_LARGE:
            raise OutOfResources(2, 1, "shared memory")
        self.n_spills = self.fact


class Kernel:
    """Candidates are numbers; what comes of each is said by `facts`."""

    def __init__(self, *facts):
        self.facts, self.compiled = facts, []
        self.params = [SimpleNamespace(do_not_specialize=not special) for special in PARAMETERS.values()]

    def fn(self):
        raise AssertionError("is not launched")

    def warmup(self, *arguments, grid, candidate):
        self.compiled.append((candidate, arguments))
        return Compiled(self.facts[candidate])


@pytest.fixture
def gpu(monkeypatch):
    """A GPU's number, which a test may change; kernels are compiled, not interpreted."""
    gpu = SimpleNamespace(number=0)
    active = SimpleNamespace(get_current_device=lambda: gpu.number)
    runtime = SimpleNamespace(driver=SimpleNamespace(active=active))
    knobs = SimpleNamespace(runtime=SimpleNamespace(interpret=False))
    monkeypatch.setattr(triton_fitting, "triton", SimpleNamespace(runtime=runtime, knobs=knobs))
    monkeypatch.setattr(triton_fitting, "_chosen", {})
    return gpu


def choose(kernel, *arguments, candidates=None):
    if candidates is None:
        candidates = tuple(range(len(kernel.facts)))
    return fitting(lambda _: kernel, candidates, arguments, lambda candidate: {"candidate": candidate})


@pytest.mark.parametrize(
    ("facts", "chosen"),
    [
        ([0, 0], 0),
        ([8, 0, 0], 1),
        ([TOO_LARGE, 0], 1),
        ([TOO_LARGE, 8, 0], 2),
        ([24, 8, 16], 1),  # all spill: the least
        ([8, TOO_LARGE, 8], 0),
    ],
)
def test_first_that_fits(gpu, facts, chosen):
    assert choose(Kernel(*facts)) == chosen


def test_nothing_fits(gpu):
    with pytest.raises(OutOfResources):
        choose(Kernel(TOO_LARGE, TOO_LARGE))


def test_every_candidate_has_its_kernel(gpu):
    """Those of the mix's forward are whole rows first, then tiles."""
    row, tiled = Kernel(8, None), Kernel(None, 0)
    chosen = fitting(lambda candidate: (row, tiled)[candidate], (0, 1), (), lambda candidate: {"candidate": candidate})
    assert chosen == 1
    assert row.compiled == [(0, ())] and tiled.compiled == [(1, ())]


def test_compiles_once_per_gpu(gpu):
    kernel, numbers = Kernel(8, 0, 0), []
    for number in (0, 1, 0, 1):
        gpu.number = number
        assert choose(kernel) == 1
        numbers.append(len(kernel.compiled))
    assert numbers == [2, 4, 4, 4]


X = torch.zeros(32)
CALL = (X, 49, (64, 4), 1000)


CALLS = {
    "another tensor": ((torch.zeros(8), *CALL[1:]), True),
    "another dtype": ((X.half(), *CALL[1:]), False),
    "not aligned": ((X[1:], *CALL[1:]), False),
    "no tensor": ((None, *CALL[1:]), False),
    "another odd size": ((X, 51, *CALL[2:]), True),
    "a size of 16": ((X, 16, *CALL[2:]), False),
    "a size of 1": ((X, 1, *CALL[2:]), False),
    "another stride": ((X, 49, (128, 4), 1000), True),
    "an odd stride": ((X, 49, (63, 4), 1000), False),
    "a batch of 16": ((*CALL[:3], 16), True),
    "a batch of 1": ((*CALL[:3], 1), True),
    "a batch beyond 32 bits": ((*CALL[:3], 2**31), False),
}


@pytest.mark.parametrize(("call", "same"), CALLS.values(), ids=CALLS)
def test_compiles_once_for_calls_that_compile_alike(gpu, call, same):
    kernel = Kernel(0)
    for arguments in (CALL, call):
        choose(kernel, *arguments)
    assert len(kernel.compiled) == (1 if same else 2)


def test_every_candidate_counts(gpu):
    """What differs in the second candidate alone is another choice: of the mix, the tail of its tile."""
    kernel = Kernel(8, 0, 0)
    assert choose(kernel, candidates=(0, 1)) == 1
    assert choose(kernel, candidates=(0, 2)) == 2


def test_the_interpreter_takes_the_first(gpu):
    triton_fitting.triton.knobs.runtime.interpret = True
    kernel = Kernel(8, 0)
    assert choose(kernel) == 0 and not kernel.compiled
