# SPDX-License-Identifier: MIT
"""Times contenders side by side in one process; medians.

CPU: the contenders take turns, so that whatever else the machine does meets all of them alike; with one thread
(`torch.set_num_threads(1)`) the time of that thread, which no other process lengthens.

GPU: CUDA events by `triton.testing.do_bench`, ours first and once more last, so that a drifting clock shows as noise.
Operations are one CUDA graph over several input sets, of ops larger together than the L2 cache, each set with outputs
of its own: neither launch gaps nor cached tensors count. Ours is timed by launches as well, which is what a contender
that no graph can hold is compared with.
"""

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any

import torch

AGAIN = "ours once more"


class Contender:
    """One implementation with its input sets: every call takes the next set, round and round."""

    def __init__(self, run: Callable[[Any], Any], input_sets: Sequence[Any]) -> None:
        self.run = run
        self.rounds = len(input_sets)
        self._next = cycle(input_sets)

    def __call__(self) -> Any:
        return self.run(next(self._next))


@dataclass(frozen=True)
class Measurement:
    """Median milliseconds by contender; noise is how far the same contender was from itself.

    `cuda_graph`: whether ours was timed as a graph; `launched_ms` is then ours by launches. `not_captured` has the
    reason for every contender that no graph could hold.
    """

    milliseconds: dict[str, float]
    noise: float
    cuda_graph: bool = False
    launched_ms: float | None = None
    not_captured: dict[str, str] = field(default_factory=dict)

    def ours_beside(self, name: str) -> float:
        """Milliseconds of ours, timed in the way that the contender was."""
        return self.launched_ms if self.cuda_graph and name in self.not_captured else self.milliseconds["ours"]


def synchronized_clock() -> float:
    """Seconds, after everything launched has ended."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def cpu_clock() -> float:
    """Seconds: of this thread where it does all the work, because others use the machine too; else of the wall."""
    return time.thread_time() if torch.get_num_threads() == 1 else time.perf_counter()


def measure(contenders: dict[str, Contender], device: str, seconds: float) -> Measurement:
    """Time all contenders, and "ours" twice to know the noise.

    Args:
        contenders: by name, "ours" among them; each has run before, so nothing is left to compile.
        seconds: time to spend on them all, about; no less than three rounds.
    """
    if device == "cuda":
        return _on_gpu(contenders, seconds)
    milliseconds = _taking_turns({**contenders, AGAIN: contenders["ours"]}, seconds)
    return Measurement(milliseconds, _noise(milliseconds))


def _noise(milliseconds: dict[str, float]) -> float:
    return abs(milliseconds.pop(AGAIN) / milliseconds["ours"] - 1)


def fastest_seconds(function: Callable[[], Any], device: str, repeats: int = 20) -> float:
    """The quickest of some calls, after one to warm up: what a device can do, whatever else it does now."""
    function()
    return min(_seconds(function, device) for _ in range(repeats))


def peak_memory(function: Callable[[], Any]) -> int:
    """Bytes that one call on the GPU has allocated at most, inputs and parameters included."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    function()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated()


def _seconds(function: Callable[[], Any], device: str) -> float:
    clock = synchronized_clock if device == "cuda" else cpu_clock
    start = clock()
    function()
    return clock() - start


def _taking_turns(contenders: dict[str, Callable], seconds: float, shortest: float = 2e-3) -> dict[str, float]:
    """Medians on a CPU; a turn repeats a call until it lasts `shortest` seconds, beyond the clock's own cost."""
    once = {name: _seconds(function, "cpu") for name, function in contenders.items()}
    calls = {name: max(1, round(shortest / t)) for name, t in once.items()}
    turn = sum(calls[name] * t for name, t in once.items())
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    with _no_garbage_collection():
        for _ in range(max(3, min(100, round(seconds / turn)))):
            for name, function in contenders.items():
                start = cpu_clock()
                for _ in range(calls[name]):
                    function()
                samples[name].append((cpu_clock() - start) / calls[name])
    return {name: 1e3 * statistics.median(times) for name, times in samples.items()}


def _on_gpu(contenders: dict[str, Contender], seconds: float) -> Measurement:
    """Medians on a GPU."""
    # A contender with several input sets is short: its launches would be timed in place of its kernels.
    short = all(contender.rounds > 1 for contender in contenders.values())
    graphs, not_captured = _capture(contenders) if short else ({}, {})
    if "ours" not in graphs:
        graphs = {}
    share = seconds / (len(contenders) + 1 + bool(graphs))

    def milliseconds_of(name: str) -> float:
        if name in graphs:
            return _median(graphs[name].replay, share) / contenders[name].rounds
        return _median(contenders[name], share)

    _wake_up(graphs["ours"].replay if graphs else contenders["ours"])
    milliseconds = {name: milliseconds_of(name) for name in contenders}
    launched = _median(contenders["ours"], share) if graphs else None
    milliseconds[AGAIN] = milliseconds_of("ours")
    return Measurement(milliseconds, _noise(milliseconds), bool(graphs), launched, not_captured)


def _median(function: Callable[[], Any], seconds: float) -> float:
    from triton.testing import do_bench

    return do_bench(function, warmup=250 * seconds, rep=1e3 * seconds, return_mode="median")


def _wake_up(function: Callable[[], Any], seconds: float = 0.05) -> None:
    """Keep the GPU busy until its clocks have risen: what is timed first would pay for it."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        function()
        torch.cuda.synchronize()


def _capture(contenders: dict[str, Contender]) -> tuple[dict[str, torch.cuda.CUDAGraph], dict[str, str]]:
    """One graph per contender over all its input sets; and why there is none of the others."""
    graphs, reasons = {}, {}
    for name, contender in contenders.items():
        try:
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):  # allocations and workspaces settle outside the capture
                for _ in range(contender.rounds):
                    contender()
            torch.cuda.current_stream().wait_stream(side)
            torch.cuda.synchronize()
            torch.cuda.empty_cache()  # a graph has memory of its own, beside what the warm-up left
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                # All results live until the end: no output is written over one that is still in the cache.
                results = [contender() for _ in range(contender.rounds)]
            del results
            graphs[name] = graph
        except RuntimeError as error:
            torch.cuda.synchronize()
            reasons[name] = str(error).strip().splitlines()[0]
    return graphs, reasons


@contextmanager
def _no_garbage_collection():
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
