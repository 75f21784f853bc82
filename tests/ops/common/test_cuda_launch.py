"""What calls of the CUDA kernels bring beside their tensors: device and stream, and windows that are compiled."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from backends import DEVICES

from container_kernels import _extension, context_aggregation, local_aggregation
from container_kernels.ops.common.cuda_launch import compiled_window, cut_window, pad_window, place
from container_kernels.testing import emulate_cuda

WINDOWS = [(1, 1), (1, 3), (3, 3), (3, 1), (5, 3), (1, 5), (5, 5), (7, 1), (5, 7), (7, 7), (9, 3), (11, 11)]


@pytest.mark.parametrize("window", WINDOWS)
def test_a_padded_window_is_compiled_and_does_the_same(window):
    weight = torch.randn(4, *window)
    padded = pad_window(weight)
    size = next(size for size in (3, 5, 7, 11) if size >= max(window))
    assert padded.shape == (4, size, size)
    assert compiled_window(*window) == size
    x = torch.randn(2, 4, 6, 5)
    expected = F.conv2d(x, weight[:, None], padding=(window[0] // 2, window[1] // 2), groups=4)
    torch.testing.assert_close(F.conv2d(x, padded[:, None], padding=size // 2, groups=4), expected)
    assert torch.equal(cut_window(padded, *window), weight)


def test_a_compiled_window_is_not_copied():
    weight = torch.randn(4, 5, 5)
    assert pad_window(weight) is weight


def test_kernels_start_on_the_tensors_device_and_its_current_stream(monkeypatch):
    module = SimpleNamespace()
    monkeypatch.setattr(_extension, "cuda", module)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda index: SimpleNamespace(cuda_stream=1000 + index))
    assert place(SimpleNamespace(device=torch.device("cuda:3"))) == (module, 3, 1003)


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("backend", ["cuda"])
def test_local_weight_gradient_of_a_padded_window(backend, window):
    """Both ways to it: local aggregation's own operator, and the mix's backward in one pass."""
    x, weight, bias = (torch.randn(shape, device=DEVICES[backend]) for shape in ((2, 12, 2, 4), (8, *window), (8,)))

    def local(backend):
        leaves = [leaf.clone().requires_grad_() for leaf in (weight, bias)]
        local_aggregation(x.view(2, 3, 4, 8), *leaves, backend=backend).square().sum().backward()
        return [leaf.grad for leaf in leaves]

    def mix(backend):
        leaves = [leaf.clone().requires_grad_() for leaf in (weight, bias)]
        out = context_aggregation(
            x, x, x, local_weight=leaves[0], local_bias=leaves[1], grid_size=(3, 4), backend=backend
        )
        out.square().sum().backward()
        return [leaf.grad for leaf in leaves]

    for gradients in (local, mix):
        for actual, expected in zip(gradients(backend), gradients("reference"), strict=True):
            assert actual.shape == expected.shape
            # Where the numbers land is the question here, not their last bits.
            torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-3)


def test_a_dense_affinity_is_refused_by_the_operators_too():
    q = torch.randn(1, 4, 1, 8)
    operators = torch.ops.container_kernels
    with emulate_cuda(), pytest.raises(ValueError, match=r"affinity: the CUDA kernels take None, got \(1, 4, 4\)"):
        operators.context_aggregation_forward_cuda(q, q, q, torch.ones(1), None, None, torch.ones(1, 4, 4), 0, 0, 1.0)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_kernels_wait_for_the_current_stream_alone(backend):
    """On any other stream they would read the NaN that the fill, behind a long kernel, has yet to replace."""
    x = torch.full((2, 8, 8, 16), torch.nan, device="cuda", dtype=torch.bfloat16)
    tokens, weight = x.view(2, 64, 1, 16), torch.ones(16, 3, 3, device="cuda")

    def step():
        mixed = context_aggregation(tokens, tokens, tokens, backend=backend)
        return mixed, local_aggregation(x, weight, backend=backend)

    assert all(out.isnan().all() for out in step())  # and now the kernels are compiled and loaded
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)
        x.fill_(1)
        outputs = step()
    stream.synchronize()
    assert all(out.isfinite().all() for out in outputs)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_a_cuda_graph_replays_forward_and_backward(backend):
    leaves = [torch.randn(2, 49, 4, 32, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]
    weight = torch.randn(128, 5, 5, device="cuda", requires_grad=True)

    def step():
        y = context_aggregation(*leaves, local_weight=weight, grid_size=(7, 7), backend=backend)
        y = local_aggregation(y.view(2, 7, 7, 128), weight, backend=backend)
        return torch.autograd.grad(y.float().square().mean(), [*leaves, weight])

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        for leaf in (*leaves, weight):
            leaf.normal_()
    graph.replay()
    for actual, expected in zip(captured, step(), strict=True):
        assert torch.equal(actual, expected)
