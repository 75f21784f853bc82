"""emulate_cuda: when "cuda" takes CPU tensors, the order of the threads, and what the compiler makes of it."""

import pytest
import torch

from container_kernels import _extension, context_aggregation, local_aggregation, use_backend
from container_kernels.testing import emulate_cuda, run_cuda_on_host

X = torch.randn(1, 5, 6, 4)
WEIGHT = torch.randn(4, 3, 3)


@pytest.fixture
def orders(monkeypatch):
    """The orders that the module was told, in place of the module."""
    told = []

    class Module:
        set_thread_order = staticmethod(told.append)

    monkeypatch.setattr(_extension, "load_cuda_emulator", lambda: Module)
    return told


def refuses_cpu_tensors():
    with pytest.raises(RuntimeError, match=r"CPU tensors only inside container_kernels\.testing\.emulate_cuda\(\)"):
        local_aggregation(X, WEIGHT, backend="cuda")
    return True


def test_only_inside_and_only_when_asked_for():
    assert refuses_cpu_tensors()
    expected = local_aggregation(X, WEIGHT, backend="reference")
    with emulate_cuda(), torch.profiler.profile(acc_events=True) as profile:
        torch.testing.assert_close(local_aggregation(X, WEIGHT, backend="cuda"), expected)
        with use_backend("cuda"):
            torch.testing.assert_close(local_aggregation(X, WEIGHT), expected)
        local_aggregation(X, WEIGHT)
    ran = {event.key: event.count for event in profile.key_averages() if event.key.startswith("container_kernels::")}
    assert ran == {
        "container_kernels::local_aggregation_forward_cuda": 2,
        "container_kernels::local_aggregation_forward_cpu": 1,
    }
    assert refuses_cpu_tensors()


def test_order_nests_and_is_restored(orders):
    with emulate_cuda(order="descending"):
        with emulate_cuda():
            assert orders == ["descending", "ascending"]
        assert orders[2:] == ["descending"]
    assert orders[3:] == ["ascending"]


def test_an_error_inside_restores(orders):
    with pytest.raises(KeyError), emulate_cuda(order="descending"):
        raise KeyError
    assert orders == ["descending", "ascending"]
    assert refuses_cpu_tensors()


def test_unknown_order(orders):
    message = "order: expected one of ascending, descending, got 'random'"
    with pytest.raises(ValueError, match=message), emulate_cuda(order="random"):
        pass
    assert not orders


def test_a_build_that_failed_is_an_error(monkeypatch):
    def fail():
        raise RuntimeError("kernel.cu:1: error: expected a kernel")

    monkeypatch.setattr(_extension, "load_cuda_emulator", fail)
    with pytest.raises(RuntimeError, match="expected a kernel"), emulate_cuda():
        pass
    assert refuses_cpu_tensors()


def test_compiles_without_a_break_and_is_guarded_on(fresh_compiler):
    """The compiled function runs the kernels inside, and refuses CPU tensors again outside."""

    @torch.compile(fullgraph=True, backend="aot_eager")
    def aggregate(x, weight):
        return local_aggregation(x, weight, backend="cuda")

    weight = WEIGHT.clone().requires_grad_()
    with emulate_cuda():
        out = aggregate(X, weight)
        out.sum().backward()
    torch.testing.assert_close(out, local_aggregation(X, WEIGHT, backend="reference"))
    assert weight.grad.count_nonzero()
    with pytest.raises(Exception, match="cannot serve this call: it takes CUDA tensors"):
        aggregate(X, weight)


def test_one_graph_serves_rows_of_any_length(fresh_compiler):
    """How long a row may be is a number for the compiler: the lengths stay symbolic."""
    graphs = []

    def record(graph_module, _):
        graphs.append(graph_module)
        return graph_module

    @torch.compile(fullgraph=True, dynamic=True, backend=record)
    def aggregate(v):
        return context_aggregation(v, v, v, backend="cuda")

    with emulate_cuda():
        for tokens in (6, 12, 20):
            v = torch.randn(2, tokens, 3, 8)
            torch.testing.assert_close(aggregate(v), context_aggregation(v, v, v, backend="reference"))
    assert len(graphs) == 1


def test_the_old_name_is_kept():
    assert run_cuda_on_host is emulate_cuda
