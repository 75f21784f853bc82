# SPDX-License-Identifier: MIT
"""How long things take: contenders measured side by side in one process, medians.

CPU: the contenders take turns, so that whatever else the machine does meets all of them alike; with one thread
(`torch.set_num_threads(1)`) the time of that thread, which no other process lengthens. GPU: CUDA events by
`triton.testing.do_bench`; operations as one CUDA graph over several input sets, of ops larger together than the L2
cache, so neither launch gaps nor cached inputs count, and for all contenders or for none.
"""

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
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
    """Median milliseconds by contender; noise is how far the same contender was from itself."""

    milliseconds: dict[str, float]
    noise: float
    cuda_graph: bool


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
    graph = False
    everyone: dict[str, Callable] = {**contenders, AGAIN: contenders["ours"]}
    if device == "cuda":
        milliseconds, graph = _on_gpu(everyone, seconds)
    else:
        milliseconds = _taking_turns(everyone, seconds)
    noise = abs(milliseconds.pop(AGAIN) / milliseconds["ours"] - 1)
    return Measurement(milliseconds, noise, graph)


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


def _on_gpu(contenders: dict[str, Callable], seconds: float) -> tuple[dict[str, float], bool]:
    """Medians on a GPU, and whether CUDA graphs were timed."""
    from triton.testing import do_bench

    # A contender with several input sets is short: its launches would be timed in place of its kernels.
    short = all(contender.rounds > 1 for contender in contenders.values())
    graphs = _capture(contenders) if short else None
    budget = 1e3 * seconds / len(contenders)
    milliseconds = {}
    for name, contender in contenders.items():
        function, calls = (contender, 1) if graphs is None else (graphs[name].replay, contender.rounds)
        milliseconds[name] = do_bench(function, warmup=budget / 4, rep=budget, return_mode="median") / calls
    return milliseconds, graphs is not None


def _capture(contenders: dict[str, Contender]) -> dict[str, torch.cuda.CUDAGraph] | None:
    """One graph a contender over all its input sets; None when any of them cannot be captured."""
    graphs = {}
    for name, contender in contenders.items():
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # allocations and workspaces settle outside the capture
            for _ in range(contender.rounds):
                contender()
        torch.cuda.current_stream().wait_stream(side)
        graphs[name] = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graphs[name]):
                for _ in range(contender.rounds):
                    contender()
        except RuntimeError:
            torch.cuda.synchronize()
            return None
    return graphs


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
