# SPDX-License-Identifier: MIT
"""Kernels, bytes and FLOPs of one operator, from its arguments and results alone.

Every operator that makes or changes data counts as one kernel that reads its tensors once and writes its results once;
a convolution's backward as one kernel for each gradient asked for. What an operator of ours keeps on chip, or copies
inside, does not show: it is counted by what goes in and what comes out, as the others are.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

# Name of an operator without namespace and overload.
_ALLOCATIONS = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
_SAME_MEMORY = {"_unsafe_view", "_reshape_alias", "lift_fresh"}
_WRITE_ONLY = {"copy_", "fill_", "zero_", "bernoulli_", "normal_", "uniform_", "random_"}
_READ_NOTHING = {"new_zeros", "new_ones", "new_full", "zeros_like", "ones_like", "full_like"}
_COPIES = {"clone", "copy_", "_to_copy"}
# What makes the host wait for the device: the answer decides on what comes next.
_SYNCHRONIZING = {"_local_scalar_dense", "nonzero", "equal", "masked_select", "_unique2", "unique_dim", "is_nonzero"}


@dataclass(frozen=True)
class OperatorCost:
    kernels: int
    bytes: int
    flops: int
    copies: int


NOTHING = OperatorCost(0, 0, 0, 0)


def name(function: torch._ops.OpOverload) -> str:
    """`aten.add_.Tensor` -> `add_`."""
    return function.overloadpacket.__name__


def synchronizes(function: torch._ops.OpOverload) -> bool:
    return name(function) in _SYNCHRONIZING


def cost(function: torch._ops.OpOverload, arguments: Sequence, keywords: dict, result) -> OperatorCost:
    """What a call of the operator costs; nothing for views, allocations and questions about metadata."""
    operator = name(function)
    if function.namespace not in ("aten", "container_kernels") or function.is_view:
        return NOTHING
    if operator in _ALLOCATIONS | _SAME_MEMORY | _SYNCHRONIZING:
        return NOTHING
    named = dict(zip((argument.name for argument in function._schema.arguments), arguments, strict=False)) | keywords
    mutable = {a.name for a in function._schema.arguments if a.alias_info is not None and a.alias_info.is_write}
    changed = list(_tensors([named[n] for n in mutable if n in named]))
    overwritten = named.keys() if operator in _READ_NOTHING else mutable if operator in _WRITE_ONLY else ()
    read = list(_tensors([value for n, value in named.items() if n not in overwritten]))
    # An operator that works in place returns what it changed.
    written = changed or list(_tensors(result))
    moved = sum(map(_bytes, read)) + sum(map(_bytes, written))
    if moved == 0:
        return NOTHING
    kernels = sum(map(bool, named["output_mask"])) if operator == "convolution_backward" else 1
    count = flop_registry.get(function.overloadpacket) if function.namespace == "container_kernels" else None
    flops = count(*arguments, **keywords, out_val=result) if count else _flops(operator, named, result)
    return OperatorCost(kernels, moved, flops, int(operator in _COPIES))


def _tensors(values) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor))


def _bytes(tensor: Tensor) -> int:
    """Of the elements that differ in their address: a broadcast tensor is read once."""
    sizes = (size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride or size == 0)
    return math.prod(sizes) * tensor.element_size()


def _flops(operator: str, named: dict, result) -> int:
    """Of PyTorch's products and windows; elementwise arithmetic is free beside its bytes."""
    match operator:
        case "convolution_backward":
            filters, out = named["weight"], named["grad_output"]
            return sum(named["output_mask"][:2]) * 2 * out.numel() * filters[0].numel()
        case "convolution":
            return 2 * result.numel() * named["weight"][0].numel()
        case "mm" | "bmm":
            first = named["self"]
            return 2 * result.numel() * first.shape[-1]
        case "addmm" | "baddbmm":
            first = named.get("mat1", named.get("batch1"))
            return 2 * result.numel() * first.shape[-1]
    return 0
