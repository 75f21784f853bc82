# SPDX-License-Identifier: MIT
"""Every operator of a step, with where in the network it ran, what it costs, and how much memory was alive."""

import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd import DeviceType
from torch.profiler import profile, record_function
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from bench.profiling import operator_costs
from bench.profiling.network_parts import Place, Places
from bench.profiling.operator_costs import OperatorCost
from bench.timing import cpu_clock

_MARK = "operator "


@dataclass(frozen=True)
class Operator:
    name: str
    place: Place
    cost: OperatorCost


@dataclass
class Step:
    """What one step did.

    Bytes are of tensors beyond those that lived before the step (parameters, moments, the image): at the peak, and kept
    from forward to backward (0 without one). `synchronizations` are operators that make the host wait for the device;
    AdamW's counters lie on the CPU and are left out.
    """

    operators: list[Operator]
    peak_bytes: int
    kept_bytes: int
    synchronizations: int


class StepRecorder(TorchDispatchMode):
    """Records what runs inside of it; `record_step` and `time_operators` use it.

    Args:
        places: of the network that runs, watching.
        around: called with an operator's number; the context manager it returns is around the operator's call, and
            around those of the views and allocations before it.
    """

    def __init__(self, places: Places, around: Callable[[int], AbstractContextManager] | None = None) -> None:
        super().__init__()
        self.places, self.around = places, around or (lambda number: nullcontext())
        self.operators: list[Operator] = []
        self.synchronizations = self.live = self.peak = 0
        self.kept: int | None = None
        self._storages = WeakIdKeyDictionary()

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        keywords = keywords or {}
        inputs = [leaf for leaf in tree_leaves((arguments, keywords)) if isinstance(leaf, Tensor)]
        for tensor in inputs:  # what lived before is no part of the step
            self._storages.setdefault(tensor.untyped_storage(), 0)
        with self.around(len(self.operators)):
            result = function(*arguments, **keywords)
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        place = self.places.of(function, inputs + outputs)
        self.synchronizations += operator_costs.synchronizes(function) and place.part != "optimizer"
        if place.direction == "backward" and self.kept is None:
            self.kept = self.live
        cost = operator_costs.cost(function, arguments, keywords, result)
        if cost.kernels:
            self.operators.append(Operator(operator_costs.name(function), place, cost))
        for tensor in outputs:
            self._track(tensor.untyped_storage())
        return result

    def _track(self, storage: torch.UntypedStorage) -> None:
        if storage in self._storages:
            return
        size = storage.nbytes()
        self._storages[storage] = size
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._release, size).atexit = False

    def _release(self, size: int) -> None:
        self.live -= size


def record_step(step: Callable[[], object], network: nn.Module) -> Step:
    """What a call of `step`, which runs `network`, does; it has run before, so nothing is left to set up."""
    recorder = _recorded(step, network)
    return Step(recorder.operators, recorder.peak, recorder.kept or 0, recorder.synchronizations)


def time_operators(step: Callable[[], object], network: nn.Module, device: str, repeats: int) -> list[float]:
    """Milliseconds of every operator that `record_step` lists, the quickest of some steps: others use the machine too.

    On a GPU the time of the operator's kernels there; on a CPU the operator's own, without what runs between them.
    """
    once = profiled_milliseconds if device == "cuda" else _clocked_milliseconds
    return [min(times) for times in zip(*(once(step, network) for _ in range(repeats)), strict=True)]


def profiled_milliseconds(step: Callable[[], object], network: nn.Module) -> list[float]:
    """Milliseconds of every operator of one step by torch's profiler: on the GPU, or where there is none on the CPU."""
    with profile(acc_events=True) as profiled:
        recorder = _recorded(step, network, lambda number: record_function(f"{_MARK}{number}"))
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    times = [0.0] * (len(recorder.operators) + 1)
    for event in profiled.events():
        if event.name.startswith(_MARK) and event.device_type == DeviceType.CPU:
            microseconds = event.device_time_total if torch.cuda.is_available() else event.cpu_time_total
            times[int(event.name.removeprefix(_MARK))] += 1e-3 * microseconds
    return times[:-1]  # what comes after the last operator is views


def _clocked_milliseconds(step: Callable[[], object], network: nn.Module) -> list[float]:
    times: list[float] = []

    @contextmanager
    def clocked(number: int) -> Iterator[None]:
        times.extend([0.0] * (number + 1 - len(times)))
        start = cpu_clock()
        yield
        times[number] += 1e3 * (cpu_clock() - start)

    return times[: len(_recorded(step, network, clocked).operators)]


def _recorded(step: Callable[[], object], network: nn.Module, around=None) -> StepRecorder:
    places = Places(network)
    with places.watching(), StepRecorder(places, around) as recorder:
        step()
    return recorder
