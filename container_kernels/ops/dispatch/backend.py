# SPDX-License-Identifier: MIT
"""Choice of the implementation: the names, the ways to ask for one, and what each needs of the machine.

    backend=...                      argument of an op: this call
    with use_backend("triton"): ...  a block of code
    CONTAINER_KERNELS_BACKEND=...    the process

A backend that is asked for, in any of these ways, serves or raises; it never falls back. (Asking for one in a block of
code or for the process says nothing about ops that have no such kernel at all: for these the choice stays automatic.)
Without a request the table in `preference` says which ones to try; in the end "reference" serves.
"""

import functools
import importlib.util
from collections.abc import Callable
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor

from ... import _env, _extension
from . import preference
from .recording import is_recorded

BACKENDS = ("cuda", "triton", "cpu", "reference")

_VARIABLE = "CONTAINER_KERNELS_BACKEND"
_TRITON_INSTALLED = importlib.util.find_spec("triton") is not None
_TRITON_INTERPRETED = _env.flag("TRITON_INTERPRET")
_GPU_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_MIN_CAPABILITY = (8, 0)

# Besides ordinary tensors those that stand for them while torch traces a program.
_PLAIN_CLASSES = (Tensor, nn.Parameter, FakeTensor, FunctionalTensor)

_requested: str | None = None
_cuda_emulated = False
_record: "list[Choice] | None" = None


@contextmanager
def use_backend(name: str | None):
    """Run every op inside the `with` block on backend `name` ("cuda", "triton", "cpu", "reference"; None: automatic).

    An op's own `backend=` argument still wins. Holds for the whole process, since autograd runs backward passes, and
    with activation checkpointing forward passes, in threads of its own; keep such a backward inside the block. Around
    a compiled function it selects (and compiles for) the backend; it cannot be entered inside of one.

    Raises:
        ValueError: `name` is not a backend.
    """
    global _requested
    previous, _requested = _requested, _known(name, "use_backend")
    try:
        yield
    finally:
        _requested = previous


@contextmanager
def cuda_emulated():
    """Inside the `with` block "cuda" takes CPU tensors; see `container_kernels.testing.emulate_cuda`."""
    global _cuda_emulated
    previous, _cuda_emulated = _cuda_emulated, True
    try:
        yield
    finally:
        _cuda_emulated = previous


class Choice(NamedTuple):
    """`passed_over`: backends that the automatic choice tried first, and why they cannot serve."""

    op: str
    backend: str
    passed_over: dict[str, str]


@contextmanager
def recorded_choices():
    """Every choice inside the `with` block joins the list that it gives."""
    global _record
    previous, _record = _record, []
    try:
        yield _record
    finally:
        _record = previous


def _recorded(op: str, backend: str, passed_over: dict[str, str]) -> str:
    if _record is not None:
        _record.append(Choice(op, backend, passed_over))
    return backend


def choose(
    op: str,
    requested: str | None,
    why_not: Callable[..., str | None],
    tensors: tuple[Tensor | float | None, ...],
    *facts,
    compiled: tuple[str, ...],
) -> str:
    """The backend that serves this call; under `torch.export` and `torch.jit.trace` always "reference".

    A recorded program must run without this package, so it gets plain PyTorch operators.

    Args:
        op: the name of the op's folder, for the table in `preference`.
        requested: the op's `backend=` argument.
        why_not: `why_not(name, tensor, *facts)` is None when backend `name` can serve plain tensors, else the reason.
        tensors: all arguments of the call that can be tensors; the first, `tensor`, is the one the op computes with.
        compiled: the op's backends beside "reference".

    Raises:
        ValueError: the requested name is not a backend.
        RuntimeError: the requested backend cannot serve this call.
    """
    tensor = tensors[0]
    other_class = why_class_matters(*tensors)

    def reason_against(name: str) -> str | None:
        return (name != "reference" and other_class) or why_not(name, tensor, *facts)

    name = _known(requested, "backend")
    if name is None:
        name = _requested or _known(_env.value(_VARIABLE), _VARIABLE)
        name = name if name == "reference" or name in compiled else None
    if is_recorded():
        return "reference"
    if name is not None:
        reason = reason_against(name)
        if reason is not None:
            raise RuntimeError(f"backend {name!r} cannot serve this call: {reason}")
        return _recorded(op, name, {})
    passed_over = {}
    for name in preference.order(op, tensor):
        reason = reason_against(name)
        if reason is None:
            return _recorded(op, name, passed_over)
        passed_over[name] = reason
    return _recorded(op, "reference", passed_over)


def why_class_matters(*tensors: Tensor | float | None) -> str | None:
    """Why only PyTorch's operators can take these: a class of tensors, such as those of quantized or distributed ones,
    says itself what operators do to them, and knows those of PyTorch alone. None where all tensors are plain."""
    for tensor in tensors:
        if isinstance(tensor, Tensor) and type(tensor) not in _PLAIN_CLASSES:
            return f"tensors of class {type(tensor).__name__} need plain PyTorch operators"
    return None


def why_not_here(name: str, tensor: Tensor) -> str | None:
    """The reason why no op runs on backend `name` here: machine, device or dtype of the tensor; None if all fit."""
    device_type = tensor.device.type
    if name == "reference":
        return None
    if _under_transform():
        return "torch.func transforms and forward-mode derivatives need plain PyTorch operators"
    if name == "cpu":
        if device_type != "cpu":
            return f"it takes CPU tensors, got a tensor on {tensor.device}"
        return _extension.why_no_cpu
    if name == "triton" and not _TRITON_INSTALLED:
        return "the package triton is not installed (it comes with torch on Linux: pip install triton)"
    if tensor.dtype not in _GPU_DTYPES:
        return f"it takes float32, bfloat16 and float16, got {str(tensor.dtype).removeprefix('torch.')}"
    if name == "cuda":
        if device_type == "cuda":
            return _extension.why_no_cuda or _why_not_cuda_on(tensor.device)
        if device_type == "cpu" and _cuda_emulated:
            return None
        only = "CPU tensors only inside container_kernels.testing.emulate_cuda()"
        return f"it takes CUDA tensors ({only}), got {device_type}"
    if device_type == "cuda":
        return _why_not_triton_on(tensor.device)
    if device_type == "cpu" and _TRITON_INTERPRETED:
        return None
    return f"it takes CUDA tensors (CPU tensors only in a process started with TRITON_INTERPRET=1), got {device_type}"


def why_not_among(compiled: tuple[str, ...], op: str, name: str, tensor: Tensor) -> str | None:
    """`why_not_here`, for an op that has kernels for the backends `compiled` alone."""
    if name not in ("reference", *compiled):
        return f"{op} has no {name!r} kernel"
    return why_not_here(name, tensor)


def usable_backends() -> dict[str, str | None]:
    """For every backend None when this machine can run it, else the reason why not."""
    if not _TRITON_INSTALLED:
        triton = why_not_here("triton", torch.empty(0))
    else:
        triton = None if _TRITON_INTERPRETED else _why_not_triton_on(torch.device("cuda"))
    cuda = _extension.why_no_cuda or _why_not_cuda_on(torch.device("cuda"))
    return {"cuda": cuda, "triton": triton, "cpu": _extension.why_no_cpu, "reference": None}


def _under_transform() -> bool:
    return torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0


# What a device can do never changes: compiled code may keep the answers.
@torch.compiler.assume_constant_result
def _why_not_triton_on(device: torch.device) -> str | None:
    return _why_not_gpu(device)


@torch.compiler.assume_constant_result
def _why_not_cuda_on(device: torch.device) -> str | None:
    return _why_not_gpu(device) or _ask_why_not(torch.cuda.current_device() if device.index is None else device.index)


# The module asks the driver, which no call of an op shall wait for but the first.
@functools.cache
def _ask_why_not(index: int) -> str | None:
    return _extension.cuda.why_not(index)


def _why_not_gpu(device: torch.device) -> str | None:
    if not torch.cuda.is_available():  # a fake tensor, or one that is only described
        return "torch sees no CUDA device"
    capability = torch.cuda.get_device_capability(device)
    if capability >= _MIN_CAPABILITY:
        return None
    return f"it needs compute capability 8.0 or higher, {device} has {capability[0]}.{capability[1]}"


def _known(name: str | None, asked_by: str) -> str | None:
    if name is None or name in BACKENDS:
        return name
    raise ValueError(f"{asked_by}: expected one of {', '.join(BACKENDS)}, got {name!r}")
