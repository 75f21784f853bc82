# SPDX-License-Identifier: MIT
"""Where the package's operators are registered, and the rules all of them share.

Every kernel is an operator `container_kernels::<op>_<direction>_<backend>`, so a compiled or exported graph
shows what ran. Definitions need torch alone; a backend's code is imported by the call that first uses it.
"""

import math
from collections.abc import Callable
from contextlib import contextmanager
from typing import get_type_hints

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

NAMESPACE = "container_kernels"
LIBRARY = torch.library.Library(NAMESPACE, "DEF")

_poison_outputs = False


# How the schema language of torch calls the types of a named tuple's fields.
_SCHEMA_TYPES = {Tensor: "Tensor", Tensor | None: "Tensor?", int: "SymInt", float: "float", bool: "bool"}


def define(
    signature: str,
    kernel: Callable,
    fake: Callable,
    device_types: tuple[str, ...],
    flops: Callable[..., int] | None = None,
) -> None:
    """Register operator `signature` with its `kernel` on each device type and its `fake` for tracing.

    `flops`: of the arguments, shapes in the place of tensors: what the operator multiplies, whatever the
    implementation, two for a multiply-add, as torch counts its own. None: it multiplies no matrices and no filters.
    """
    name = signature.split("(")[0]
    LIBRARY.define(signature, tags=(torch.Tag.pt2_compliant_tag,))
    for device_type in device_types:
        LIBRARY.impl(name, kernel, device_type.upper())
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=LIBRARY)
    if flops is not None:
        register_flop_formula(getattr(getattr(torch.ops, NAMESPACE), name))(flops)


def parameters_of(inputs: type, skip: tuple[str, ...] = ()) -> str:
    """The fields of the named tuple `inputs`, but for those of `skip`, as parameters of an operator."""
    fields = get_type_hints(inputs).items()
    return ", ".join(f"{_SCHEMA_TYPES[kind]} {name}" for name, kind in fields if name not in skip)


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype sums run in: float64 for float64, float32 for everything narrower."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def is_recorded() -> bool:
    """Whether torch.export or torch.jit.trace records the call, for a program that runs without this package."""
    # What torch.compiler.is_exporting() returns; tracing that call, torch 2.11's compiler takes it for True always.
    return torch.compiler._is_exporting_flag or torch.jit.is_tracing()


def definition_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which definitions multiply matrices: that of sums, so that only the result is rounded.

    In a recorded program, which others run and do not compare with, the tensors' own: matrix units take no other.
    """
    return dtype if is_recorded() else accumulation_dtype(dtype)


def converted(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """`tensor` in `dtype`, for definitions; None stays None.

    As it is in a program recorded under autocast: autocast is no part of a program, and a conversion would be, together
    with a check of the dtype that autocast had given the tensor.
    """
    if tensor is None or (is_recorded() and torch.is_autocast_enabled(tensor.device.type)):
        return tensor
    return tensor.to(dtype)


def new_empty(like: Tensor, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> Tensor:
    """Uninitialised contiguous output; NaN under `poisoned_outputs`, so that an unwritten element shows."""
    out = like.new_empty(shape, dtype=dtype or like.dtype)
    return out.fill_(math.nan) if _poison_outputs else out


def rows_contiguous(tensor: Tensor) -> Tensor:
    """`tensor` itself when its last dimension is contiguous, as kernels require, else a copy."""
    return tensor if tensor.stride(-1) == 1 or tensor.size(-1) == 1 else tensor.contiguous()


def contiguous(tensor: Tensor | None) -> Tensor | None:
    """`tensor` itself, or a copy, contiguous; None stays None."""
    return None if tensor is None else tensor.contiguous()


def aligned(tensor: Tensor | None) -> Tensor | None:
    """`contiguous`, and at a multiple of 16 bytes, as allocations are: for Triton, which compiles for what it sees.

    A view that starts elsewhere would make kernels that load single elements and spill, which costs more than a copy.
    """
    tensor = contiguous(tensor)
    return tensor if tensor is None or tensor.data_ptr() % 16 == 0 else tensor.clone()


def pointer(tensor: Tensor | None) -> int:
    """The address of the tensor's data as the extension takes it, 0 for None."""
    return 0 if tensor is None else tensor.data_ptr()


@contextmanager
def poisoned_outputs():
    """Within it, every output a kernel is about to write starts as NaN (for tests)."""
    global _poison_outputs
    previous, _poison_outputs = _poison_outputs, True
    try:
        yield
    finally:
        _poison_outputs = previous


def refuse_double_backward(name: str, backend: str) -> None:
    """Make differentiating through backward operator `name` an error that says what to use instead."""

    def backward(ctx, *grads):
        raise RuntimeError(
            f"backend {backend!r} has no second derivatives; differentiate twice with backend='reference'"
        )

    torch.library.register_autograd(f"{NAMESPACE}::{name}", backward, lib=LIBRARY)
