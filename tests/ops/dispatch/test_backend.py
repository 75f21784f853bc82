"""Which backend runs, the ways to ask for one, and the reasons a request is refused."""

import os
import re
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
import torch
from backends import CUDA_ON_GPU
from torch.utils.checkpoint import checkpoint

from container_kernels import _extension, context_aggregation, local_aggregation, usable_backends, use_backend
from container_kernels.ops.common.cuda_launch import WINDOWS
from container_kernels.ops.context_aggregation.backends import COMPILED, why_not
from container_kernels.ops.dispatch import backend as backend_module
from container_kernels.ops.dispatch import preference
from container_kernels.ops.dispatch.backend import BACKENDS, choose, why_not_here
from container_kernels.testing import emulate_cuda

V = torch.randn(1, 4, 2, 8)


def ran(tensor=V, backend=None):
    return choose("context_aggregation", backend, why_not, (tensor,), True, False, compiled=COMPILED)


def test_automatic_choice():
    assert ran() == "cpu"
    assert ran(V.double()) == "cpu"
    assert ran(V.to("meta")) == "reference"
    wide = torch.randn(1, 4, 1, 300)
    assert ran(wide) == "reference"  # head_dim over the attention kernels' limit
    # Static terms have no such limit.
    assert choose("context_aggregation", None, why_not, (wide,), False, False, compiled=COMPILED) == "cpu"


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


def described(shape, dtype=torch.bfloat16, device="cuda:0"):
    """What the choice looks at of a tensor, without the GPU to have one on."""
    return SimpleNamespace(shape=shape, dtype=dtype, device=torch.device(device))


@pytest.mark.parametrize(
    ("op", "tensor", "order"),
    [
        ("local_aggregation", described((8, 56, 56, 64)), ("cuda", "triton")),
        ("local_aggregation", described((8, 56, 56, 64), torch.float32), ("cuda", "triton")),
        ("context_aggregation", described((8, 49, 16, 32)), ("cuda", "triton")),
        ("context_aggregation", described((8, 256, 10, 32), torch.float16), ("cuda", "triton")),
        ("context_aggregation", described((8, 257, 10, 32)), ("triton", "cuda")),
        ("context_aggregation", described((8, 49, 16, 32), torch.float32), ("triton", "cuda")),
        ("context_aggregation", described((8, 49, 16, 32), torch.float64), ()),
        ("context_aggregation", described((8, 49, 16, 32), device="cpu"), ("cpu",)),
        ("context_aggregation", described((8, 49, 16, 32), torch.float64, "cpu"), ("cpu",)),
        ("deformable_attention", described((2, 22223, 8, 32)), ("cuda", "triton")),
        ("local_aggregation", described((8, 56, 56, 64), device="meta"), ()),
    ],
)
def test_order_of_preference(op, tensor, order):
    assert preference.order(op, tensor) == order


def test_every_row_of_the_table_names_backends_and_its_reason():
    for row in preference.ROWS:
        assert set(row.order) <= set(BACKENDS)
        assert row.because.startswith(("prediction: ", "measured: "))


@pytest.mark.parametrize(
    ("unusable", "expected"), [((), "cuda"), (("cuda",), "triton"), (("cuda", "triton"), "reference")]
)
def test_automatic_choice_takes_the_first_that_serves(unusable, expected):
    def why_not(name, tensor):
        return "no" if name in unusable else None

    assert choose("local_aggregation", None, why_not, (described((8, 56, 56, 64)),), compiled=COMPILED) == expected


@pytest.fixture
def gpu(monkeypatch):
    """torch describes a GPU, and the CUDA module has kernels; `gpu(capability, why_not)` says which."""

    def describe(capability=(9, 0), why_not=None):
        backend_module._ask_why_not.cache_clear()
        # assume_constant_result asks torch only when it compiles.
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(_extension, "why_no_cuda", None)
        monkeypatch.setattr(
            _extension, "cuda", SimpleNamespace(why_not=lambda index: why_not and f"{index}: {why_not}")
        )

    yield describe
    backend_module._ask_why_not.cache_clear()


@pytest.mark.parametrize(
    ("capability", "why_not", "reason"),
    [
        ((9, 0), None, None),
        ((7, 5), None, "it needs compute capability 8.0 or higher, cuda:1 has 7.5"),
        ((9, 0), "built for CUDA 13.0, the driver supports 12.4", "1: built for CUDA 13.0, the driver supports 12.4"),
    ],
)
def test_what_the_cuda_kernels_need_of_a_device(gpu, capability, why_not, reason):
    gpu(capability, why_not)
    assert why_not_here("cuda", described((8, 56, 56, 64), device="cuda:1")) == reason


def test_cuda_without_its_module(gpu, monkeypatch):
    gpu()
    monkeypatch.setattr(_extension, "why_no_cuda", "there was no nvcc")
    assert why_not_here("cuda", described((8, 56, 56, 64))) == "there was no nvcc"
    assert usable_backends()["cuda"] == "there was no nvcc"


@pytest.mark.gpu
def test_automatic_choice_on_a_gpu():
    assert ran(V.cuda().bfloat16()) == ("cuda" if CUDA_ON_GPU else "triton")
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
    ("name", "tensor", "reason"),
    [
        ("cuda", V, r"it takes CUDA tensors \(CPU tensors only inside container_kernels\.testing\.emulate_cuda"),
        ("cuda", V.double(), "it takes float32, bfloat16 and float16, got float64"),
        ("cuda", torch.randn(1, 4, 1, 129), "it takes head_dim up to 128, got 129"),
        ("triton", V.double(), "it takes float32, bfloat16 and float16, got float64"),
        ("triton", V.to("meta"), "it takes CUDA tensors .* got meta"),
        ("triton", torch.randn(1, 4, 1, 257), "it takes head_dim up to 256, got 257"),
        ("cpu", torch.randn(1, 4, 1, 257), "it takes head_dim up to 256, got 257"),
        ("cpu", V.to("meta"), "it takes CPU tensors, got a tensor on meta"),
    ],
)
def test_request_that_cannot_be_served(name, tensor, reason):
    with pytest.raises(RuntimeError, match=f"backend '{name}' cannot serve this call: {reason}"):
        context_aggregation(tensor, tensor, tensor, backend=name)


@pytest.mark.parametrize(
    ("dense", "tokens", "reason"),
    [
        (True, 4, "it has no dense affinity beside the dynamic term"),
        (False, 9000, r"its blocks hold a whole row, up to \d+ tokens of head_dim 8 here, got 9000"),
    ],
)
def test_what_the_cuda_mix_does_not_take(dense, tokens, reason):
    with emulate_cuda():
        assert re.search(reason, why_not("cuda", V[:, :1].expand(1, tokens, 2, 8), True, dense))
        assert why_not("cuda", V, True, False) is None
        assert why_not("cuda", V, False, True) is None  # a static term alone is another op's, or the library's


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("head_dim", [1, 32, 33, 64, 100, 128])
def test_every_row_that_the_cuda_mix_takes_fits_shared_memory(dtype, head_dim):
    """Whatever the grid and the window; and the first one refused would not fit."""
    module = _extension.load_cuda_emulator()
    code, limit = _extension.DTYPE_CODES[dtype], module.shared_memory_limit(-1)

    def fits(height, width, window):
        sizes, grid = (1, height * width, 1, head_dim), (height, width, window, window)
        backward = module.context_aggregation_backward_shared_memory(code, sizes, grid)
        return max(module.context_aggregation_forward_shared_memory(code, sizes, grid), backward) <= limit

    value = torch.zeros(1, 1, 1, 1, dtype=dtype)
    with emulate_cuda():
        taken = [n for n in range(1, 1000) if why_not("cuda", value.expand(1, n, 1, head_dim), True, False) is None]
    assert taken == list(range(1, len(taken) + 1))
    assert len(taken) >= 64
    for tokens in taken:
        for width in (1, 7, 16, tokens):
            if tokens % width == 0:
                assert all(fits(tokens // width, width, window) for window in (0, *WINDOWS))
    assert not fits(1, len(taken) + 1, 7)


def test_missing_extension_is_explained(monkeypatch):
    monkeypatch.setattr(_extension, "why_no_cpu", "no compiler was found")
    with pytest.raises(RuntimeError, match="backend 'cpu' cannot serve this call: no compiler was found"):
        context_aggregation(V, V, V, backend="cpu")
    assert usable_backends()["cpu"] == "no compiler was found"


def test_usable_backends_names_all():
    reasons = usable_backends()
    assert tuple(reasons) == BACKENDS
    assert reasons["cpu"] is None and reasons["reference"] is None
    assert reasons["cuda"] or torch.cuda.is_available()


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
