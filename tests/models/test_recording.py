"""Programs that others record of a network: torch.jit.trace and what stands on it, torch.export under autocast."""

import io

import pytest
import torch
from tiny_networks import tiny

pytestmark = [
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
# One of each layout, with attention, a window and a dense affinity among them.
NETWORKS = ("container_light", "container_pam", "mixer")


def recorded_network(name, fused):
    model = tiny(name).eval()
    return model.fuse() if fused else model


@pytest.mark.parametrize("fused", [False, True], ids=["", "fused"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_trace_has_plain_operators(name, fused):
    """FLOP counters and graph viewers trace; sizes of tensors are tensors then."""
    model = recorded_network(name, fused)
    x = torch.randn(2, 3, 32, 32)
    traced = torch.jit.trace(model, x)
    assert "container_kernels::" not in str(traced.inlined_graph)
    torch.testing.assert_close(traced(x), model(x))


def test_a_trace_in_training_mode():
    model = tiny("container_light")
    x = torch.randn(2, 3, 64, 64)
    traced = torch.jit.trace(model, x, check_trace=False)
    torch.testing.assert_close(traced(x), model(x), rtol=1e-4, atol=1e-4)


def test_onnx_by_tracing():
    pytest.importorskip("onnx")
    file = io.BytesIO()
    torch.onnx.export(tiny("container_light").eval(), (torch.randn(2, 3, 64, 64),), file, dynamo=False)
    assert file.tell() > 10_000


@pytest.mark.parametrize("fused", [False, True], ids=["", "fused"])
@pytest.mark.parametrize("name", NETWORKS)
def test_exported_under_autocast_runs_with_and_without(name, fused):
    """As of any other network, autocast is no part of the program: not its regions, nor what it made of a dtype."""
    model = recorded_network(name, fused)
    x = torch.randn(2, 3, 32, 32)
    with torch.autocast("cpu", torch.bfloat16):
        program = torch.export.export(model, (x,))
        assert not any("autocast" in str(node.target).lower() for node in program.graph.nodes)
        mixed, expected = program.module()(x), model(x)
    torch.testing.assert_close(mixed, expected, rtol=0.1, atol=0.05)
    out = program.module()(x)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, model(x), rtol=1e-4, atol=1e-5)
