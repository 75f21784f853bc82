# SPDX-License-Identifier: MIT
"""Registration of the package's operators, by one pattern.

Every kernel is an operator `container_kernels::<op>_<direction>_<backend>`, so a compiled or exported graph
shows what ran. Definitions need torch alone; a backend's code is imported by the call that first uses it.
"""

from collections.abc import Callable
from typing import get_type_hints

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

NAMESPACE = "container_kernels"
_LIBRARY = torch.library.Library(NAMESPACE, "DEF")

# Device types each compiled backend registers its operators for.
DEVICE_TYPES = {"cuda": ("cuda", "cpu"), "triton": ("cuda", "cpu"), "cpu": ("cpu",)}

# Schema types of torch for the types of a named tuple's fields.
_SCHEMA_TYPES = {
    Tensor: "Tensor",
    Tensor | None: "Tensor?",
    int: "SymInt",
    list[int]: "SymInt[]",
    float: "float",
    bool: "bool",
}


def define(
    name: str,
    backend: str,
    signature: str,
    kernel: Callable,
    fake: Callable,
    flops: Callable[..., int] | None = None,
) -> None:
    """Register operator `name`_`backend` with its `kernel` on the backend's device types and its `fake` for tracing.

    `signature`: "(arguments) -> results" in torch's schema language.
    `flops`: of the arguments, shapes in the place of tensors: what the operator multiplies, whatever the
    implementation, two for a multiply-add, as torch counts its own. None: it multiplies no matrices and no filters.
    """
    full_name = f"{name}_{backend}"
    _LIBRARY.define(full_name + signature, tags=(torch.Tag.pt2_compliant_tag,))
    for device_type in DEVICE_TYPES[backend]:
        _LIBRARY.impl(full_name, kernel, device_type.upper())
    torch.library.register_fake(f"{NAMESPACE}::{full_name}", fake, lib=_LIBRARY)
    if flops is not None:
        register_flop_formula(operator_of(name, backend))(flops)


def differentiate(name: str, backend: str, backward: Callable, setup_context: Callable) -> None:
    """Register the gradients of operator `name`_`backend`, as `torch.library.register_autograd` takes them."""
    torch.library.register_autograd(
        f"{NAMESPACE}::{name}_{backend}", backward, setup_context=setup_context, lib=_LIBRARY
    )


def operator_of(name: str, backend: str) -> torch._ops.OpOverloadPacket:
    """The operator `name`_`backend`."""
    return getattr(getattr(torch.ops, NAMESPACE), f"{name}_{backend}")


def parameters_of(inputs: type, skip: tuple[str, ...] = ()) -> str:
    """The fields of the named tuple `inputs`, but for those of `skip`, as parameters of an operator."""
    fields = get_type_hints(inputs).items()
    return ", ".join(f"{_SCHEMA_TYPES[kind]} {name}" for name, kind in fields if name not in skip)


def arguments_of(inputs: type, values: tuple, skip: tuple[str, ...] = ()):
    """The named tuple `inputs` from an operator's arguments `values`; fields in `skip`, which it has not, are None."""
    names = [name for name in inputs._fields if name not in skip]
    return inputs(**dict.fromkeys(skip), **dict(zip(names, values, strict=True)))


def refuse_double_backward(name: str, backend: str) -> None:
    """Make differentiating through backward operator `name`_`backend` an error that says what to use instead."""

    def backward(ctx, *grads):
        raise RuntimeError(
            f"backend {backend!r} has no second derivatives; differentiate twice with backend='reference'"
        )

    torch.library.register_autograd(f"{NAMESPACE}::{name}_{backend}", backward, lib=_LIBRARY)
