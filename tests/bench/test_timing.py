"""The clock of the benchmarks: turns on a CPU, graphs on a GPU (stood for), noise."""

import time

import pytest
import torch

from bench import timing
from bench.timing import Contender, measure


def test_contender_rotates_its_inputs():
    contender = Contender(lambda inputs: inputs, ["first", "second"])
    assert contender.rounds == 2
    assert [contender() for _ in range(3)] == ["first", "second", "first"]


@pytest.mark.parametrize("threads", [1, 2])
def test_measure_tells_fast_from_slow(monkeypatch, threads):
    """By the wall, or where one thread does all the work by its own time, in which sleeping takes none."""

    def spend(seconds):
        time.sleep(0.03)
        start = time.thread_time()
        while time.thread_time() - start < seconds:
            pass

    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    fast, slow = (Contender(spend, [seconds]) for seconds in (1e-3, 1e-2))
    result = measure({"ours": fast, "eager": slow}, "cpu", 0.1)
    assert result.milliseconds.keys() == {"ours", "eager"}
    asleep = 0 if threads == 1 else 30
    assert asleep + 1 <= result.milliseconds["ours"] < result.milliseconds["eager"]
    assert result.milliseconds["eager"] >= asleep + 10
    assert threads > 1 or result.milliseconds["ours"] < 10
    assert result.noise >= 0 and not result.cuda_graph


class Graph:
    """A recorded CUDA graph of a contender: its replay takes 2 ms per input set."""

    def __init__(self, rounds):
        self.rounds = rounds

    def replay(self):
        """Nothing runs here."""


@pytest.fixture
def clock(monkeypatch):
    """A GPU whose graphs take 2 ms per call and whose launches 2.5 (ours) or 6 (theirs); the names timed, in order."""
    timed = []

    def do_bench(function, warmup, rep, return_mode):
        assert return_mode == "median" and rep > warmup > 0
        graph = getattr(function, "__self__", None)
        timed.append(function)
        if isinstance(graph, Graph):
            return 2.0 * graph.rounds
        return 2.5 if function.run == "ours" else 6.0

    monkeypatch.setattr("triton.testing.do_bench", do_bench)
    monkeypatch.setattr(timing, "_wake_up", lambda function: timed.append(function))
    return timed


def contenders_with(rounds):
    return {name: Contender(name, [None] * n) for name, n in zip(("ours", "eager"), rounds, strict=True)}


@pytest.mark.parametrize("refusing", [(), ("eager",), ("ours",), ("ours", "eager")], ids=str)
def test_gpu_times_graphs_on_both_sides_or_launches_on_both(monkeypatch, clock, refusing):
    """A contender that no graph can hold is compared with ours by launches, and says why."""

    def capture(contenders):
        graphs = {name: Graph(c.rounds) for name, c in contenders.items() if name not in refusing}
        return graphs, {name: "operation not permitted" for name in refusing}

    monkeypatch.setattr(timing, "_capture", capture)
    measured = timing.measure(contenders_with((4, 3)), "cuda", 1.0)
    graphs = "ours" not in refusing
    theirs = 2.0 if graphs and "eager" not in refusing else 6.0
    assert measured.milliseconds == {"ours": 2.0 if graphs else 2.5, "eager": theirs}
    assert measured.cuda_graph == graphs and measured.launched_ms == (2.5 if graphs else None)
    assert measured.ours_beside("eager") == (2.0 if graphs and not refusing else 2.5)
    assert set(measured.not_captured) == set(refusing) and measured.noise == 0


def test_gpu_times_what_is_long_by_launches(monkeypatch, clock):
    monkeypatch.setattr(timing, "_capture", lambda _: pytest.fail("long operations need no graph"))
    measured = timing.measure(contenders_with((4, 1)), "cuda", 1.0)
    assert measured == timing.Measurement({"ours": 2.5, "eager": 6.0}, noise=0.0)


def test_ours_is_timed_first_and_last_with_the_clocks_up(monkeypatch, clock):
    monkeypatch.setattr(timing, "_capture", lambda contenders: ({}, {}))
    contenders = contenders_with((4, 4))
    timing.measure(contenders, "cuda", 1.0)
    assert [function.run for function in clock] == ["ours", "ours", "eager", "ours"]


def test_the_same_twice_is_the_noise(monkeypatch, clock):
    times = iter([2.0, 9.0, 2.5])
    monkeypatch.setattr(timing, "_capture", lambda contenders: ({}, {}))
    monkeypatch.setattr(timing, "_median", lambda function, seconds: next(times))
    assert timing.measure(contenders_with((4, 4)), "cuda", 1.0).noise == pytest.approx(0.25)


class RecordingStream:
    """Stands for a stream, for what makes it current, and for a graph that records it."""

    def wait_stream(self, other):
        """Nothing runs on it."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return False


def test_captured_results_live_together_and_a_refusal_is_one_contenders_own(monkeypatch):
    """An output that is written over one still in the cache would never reach memory."""

    class Result:
        alive = most = 0

        def __init__(self):
            Result.alive += 1
            Result.most = max(Result.most, Result.alive)

        def __del__(self):
            Result.alive -= 1

    def refuse(_):
        raise RuntimeError("operation not permitted when stream is capturing\nlong story")

    for name in ("synchronize", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    for name in ("Stream", "current_stream", "stream", "CUDAGraph", "graph"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: RecordingStream())
    contenders = {
        "eager": timing.Contender(refuse, [1, 2]),
        "ours": timing.Contender(lambda _: Result(), [1, 2, 3]),
    }
    graphs, reasons = timing._capture(contenders)
    assert list(graphs) == ["ours"] and reasons == {"eager": "operation not permitted when stream is capturing"}
    assert Result.most == 3 and Result.alive == 0
