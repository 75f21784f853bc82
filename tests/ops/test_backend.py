"""Which backend runs, the ways to ask for one, and the reasons a request is refused."""

import os
import subprocess
import sys
import threading

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from container_kernels import _extension, context_aggregation, local_aggregation, usable_backends, use_backend
from container_kernels.ops.backend import BACKENDS, choose
from container_kernels.ops.context_aggregation.backends import why_not

V = torch.randn(1, 4, 2, 8)


def ran(tensor=V, backend=None):
    return choose("context_aggregation", backend, why_not, tensor, True, False)


def test_automatic_choice():
    assert ran() == "cpu"
    assert ran(V.double()) == "cpu"
    assert ran(V.to("meta")) == "reference"
    wide = torch.randn(1, 4, 1, 300)
    assert ran(wide) == "reference"  # head_dim over the attention kernels' limit
    assert choose("context_aggregation", None, why_not, wide, False, False) == "cpu"  # which static terms do not have


def test_automatic_choice_serves_transforms():
    """What operators cannot do falls to the definition; a kernel asked for refuses, rather than lose a tangent."""

    def energy(v):
        return context_aggregation(v, v, v).square().sum()

    with use_backend("reference"):
        expected = torch.func.jvp(energy, (V,), (V,))[1], torch.func.grad(energy)(V)
    assert expected[0] != 0
    torch.testing.assert_close((torch.func.jvp(energy, (V,), (V,))[1], torch.func.grad(energy)(V)), expected)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(V, V)
        tangent = torch.autograd.forward_ad.unpack_dual(energy(dual)).tangent
        torch.testing.assert_close(tangent, expected[0])
        with pytest.raises(RuntimeError, match=r"'cpu' cannot serve this call: torch\.func transforms"):
            context_aggregation(dual, dual, dual, backend="cpu")


@pytest.mark.gpu
def test_automatic_choice_on_a_gpu():
    assert ran(V.cuda()) == "triton"
    assert ran(V.cuda().double()) == "reference"


def test_automatic_choice_survives_a_missing_extension(monkeypatch):
    monkeypatch.setattr(_extension, "why_no_cpu", "no compiler was found")
    assert ran() == "reference"
    assert local_aggregation(torch.ones(1, 2, 2, 1), torch.ones(1, 1, 1)).sum() == 4


def test_argument_beats_context_beats_environment(monkeypatch):
    monkeypatch.setenv("CONTAINER_KERNELS_BACKEND", "reference")
    assert ran() == "reference"
    with use_backend("cpu"):
        assert ran() == "cpu"
        assert ran(backend="reference") == "reference"
        with use_backend(None):
            assert ran() == "reference"  # automatic again, so the environment counts
        assert ran() == "cpu"
    assert ran() == "reference"


def test_context_ends_with_an_error():
    with pytest.raises(KeyError), use_backend("reference"):
        raise KeyError
    assert ran() == "cpu"


def test_context_reaches_other_threads():
    """Autograd recomputes checkpointed forwards in threads of its own: they must choose as the forward did."""
    v = V.clone().requires_grad_()
    with use_backend("reference"):
        out = checkpoint(context_aggregation, v, v, v, use_reentrant=False)
        thread = threading.Thread(target=out.sum().backward)
        thread.start()
        thread.join()
    assert v.grad is not None and v.grad.count_nonzero()


@pytest.mark.parametrize("ask", ["argument", "context", "environment"])
def test_unknown_name(ask, monkeypatch):
    message = "expected one of cuda, triton, cpu, reference, got 'gpu'"
    if ask == "argument":
        with pytest.raises(ValueError, match=f"backend: {message}"):
            ran(backend="gpu")
    elif ask == "context":
        with pytest.raises(ValueError, match=f"use_backend: {message}"), use_backend("gpu"):
            pass
    else:
        monkeypatch.setenv("CONTAINER_KERNELS_BACKEND", "gpu")
        with pytest.raises(ValueError, match=f"CONTAINER_KERNELS_BACKEND: {message}"):
            ran()


@pytest.mark.parametrize(
    ("backend", "tensor", "reason"),
    [
        ("cuda", V, r"it takes CUDA tensors \(CPU tensors only inside container_kernels\.testing\.run_cuda_on_host"),
        ("cuda", V.double(), "it takes float32, bfloat16 and float16, got float64"),
        ("cuda", torch.randn(1, 4, 1, 129), "it takes head_dim up to 128, got 129"),
        ("triton", V.double(), "it takes float32, bfloat16 and float16, got float64"),
        ("triton", V.to("meta"), "it takes CUDA tensors .* got meta"),
        ("triton", torch.randn(1, 4, 1, 257), "it takes head_dim up to 256, got 257"),
        ("cpu", torch.randn(1, 4, 1, 257), "it takes head_dim up to 256, got 257"),
        ("cpu", V.to("meta"), "it takes CPU tensors, got a tensor on meta"),
    ],
)
def test_request_that_cannot_be_served(backend, tensor, reason):
    with pytest.raises(RuntimeError, match=f"backend '{backend}' cannot serve this call: {reason}"):
        context_aggregation(tensor, tensor, tensor, backend=backend)


def test_missing_extension_is_explained(monkeypatch):
    monkeypatch.setattr(_extension, "why_no_cpu", "no compiler was found")
    with pytest.raises(RuntimeError, match="backend 'cpu' cannot serve this call: no compiler was found"):
        context_aggregation(V, V, V, backend="cpu")
    assert usable_backends()["cpu"] == "no compiler was found"


def test_usable_backends_names_all():
    reasons = usable_backends()
    assert tuple(reasons) == BACKENDS
    assert reasons["cpu"] is None and reasons["reference"] is None and reasons["cuda"]


def test_cpu_tensors_need_the_interpreter():
    """Outside of tests "triton" refuses CPU tensors, and is never chosen for them."""
    code = """
import torch
from container_kernels import context_aggregation, usable_backends
v = torch.randn(1, 4, 1, 8)
context_aggregation(v, v, v)
try:
    context_aggregation(v, v, v, backend="triton")
except RuntimeError as error:
    assert "CPU tensors only in a process started with TRITON_INTERPRET=1" in str(error), error
else:
    raise AssertionError("triton served a CPU tensor")
if not torch.cuda.is_available():
    assert usable_backends()["triton"] == "torch sees no CUDA device", usable_backends()
"""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
