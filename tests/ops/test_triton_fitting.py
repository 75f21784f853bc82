"""The choice of tiles by what a compiler made of them, on kernels that need no compiler."""

from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton")
from triton.runtime.errors import OutOfResources

from container_kernels.ops import triton_fitting
from container_kernels.ops.triton_fitting import fitting, specialization

TOO_LARGE = "needs more shared memory than there is"


class Kernel:
    def __init__(self, fact):
        self.fact = fact

    def _init_handles(self):
        if self.fact == TOO_LARGE:
            raise OutOfResources(2, 1, "shared memory")
        self.n_spills = self.fact


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
    assert fitting(range(len(facts)), lambda candidate: Kernel(facts[candidate]), "kernel") == chosen


def test_nothing_fits(gpu):
    with pytest.raises(OutOfResources):
        fitting(range(2), lambda candidate: Kernel(TOO_LARGE), "kernel")


def test_compiles_once_per_key_and_gpu(gpu):
    compiled = []

    def compile(candidate):
        compiled.append((gpu.number, candidate))
        return Kernel(8 if candidate == 0 else 0)

    for number in (0, 1, 0, 1):
        gpu.number = number
        assert fitting((0, 1, 2), compile, "kernel", 7) == 1
    assert compiled == [(0, 0), (0, 1), (1, 0), (1, 1)]
    fitting((0, 1, 2), compile, "kernel", 8)
    assert len(compiled) == 6


def test_the_interpreter_takes_the_first(gpu):
    triton_fitting.triton.knobs.runtime.interpret = True
    assert fitting((0, 1), lambda candidate: pytest.fail("compiled"), "kernel") == 0


def test_specialization_tells_apart_what_is_compiled_apart():
    aligned = torch.zeros(8)
    others = (aligned.half(), aligned[1:], None, 1, 16, (1, 2, 3))
    seen = {specialization([argument]) for argument in (aligned, *others)}
    assert len(seen) == 1 + len(others)
    assert specialization([aligned]) == specialization([torch.ones(80)])
