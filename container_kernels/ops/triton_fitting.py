# SPDX-License-Identifier: MIT
"""Tiles by what the compiler made of them: the first on a list that fits the GPU without spilling a register.

ptxas aims at numbers of registers that let one more block share a multiprocessor, and now and then spills a few to get
there; where, differs between GPUs, compilers and sizes, so no table avoids it. What a compiled kernel spills is known
before its first launch, though. The choice is one of facts, not of times: a GPU and a compiler always choose alike.
"""

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, TypeVar

import torch
import triton
from triton.runtime.errors import OutOfResources

Tiles = TypeVar("Tiles")

_chosen: dict[Hashable, Any] = {}


def specialization(arguments: Iterable) -> tuple:
    """All that the code compiled for these arguments can depend on: of tensors the dtype and the alignment."""
    return tuple(
        (argument.dtype, argument.data_ptr() % 16 == 0) if isinstance(argument, torch.Tensor) else argument
        for argument in arguments
    )


def fitting(candidates: Sequence[Tiles], compile: Callable[[Tiles], Any], *key: Hashable) -> Tiles:
    """The first candidate that spills nothing and has the shared memory that it needs; else the one that spills least.

    Args:
        candidates: best first; the interpreter takes the first.
        compile: compiles a kernel with a candidate's tiles for Triton's current device, without launching it.
        key: what the compiled code depends on beside the candidates and the device; the choice is made once for each.

    Raises:
        triton.runtime.errors.OutOfResources: no candidate has the shared memory that it needs.
    """
    if triton.knobs.runtime.interpret:
        return candidates[0]
    key = (triton.runtime.driver.active.get_current_device(), key)
    chosen = _chosen.get(key)
    if chosen is None:
        chosen = _chosen[key] = _first_fitting(candidates, compile)
    return chosen


def _first_fitting(candidates: Sequence[Tiles], compile: Callable[[Tiles], Any]) -> Tiles:
    spilled = {}
    for candidate in candidates:
        kernel = compile(candidate)
        try:
            kernel._init_handles()  # loads it, as a launch does, and so learns what it spills; torch.compile asks alike
        except OutOfResources as error:
            shortage = error
            continue
        if not kernel.n_spills:
            return candidate
        spilled.setdefault(kernel.n_spills, candidate)
    if not spilled:
        raise shortage
    return spilled[min(spilled)]
