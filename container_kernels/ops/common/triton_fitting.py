# SPDX-License-Identifier: MIT
"""Tiles by what the compiler made of them: the first on a list that fits the GPU without spilling a register.

ptxas aims at numbers of registers that let one more block share a multiprocessor, and now and then spills a few to get
there; where, differs between GPUs, compilers and sizes, so no table avoids it. What a compiled kernel spills is known
before its first launch, though. The choice is one of facts, not of times: a GPU and a compiler always choose alike.
"""

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import torch
import triton
from triton import JITFunction
from triton.runtime.errors import OutOfResources

Tiles = TypeVar("Tiles")

_chosen: dict[Hashable, Any] = {}


def fitting(
    kernel_of: Callable[[Tiles], JITFunction],
    candidates: tuple[Tiles, ...],
    arguments: tuple,
    options: Callable[[Tiles], dict[str, Any]],
) -> Tiles:
    """The first candidate that spills nothing and has the shared memory that it needs; else the one that spills least.

    The choice is made once for all arguments that compile to the same code, so not anew for every batch size.

    Args:
        kernel_of: the kernel that a candidate is launched with; their parameters are the same.
        candidates: tiles, best first; the interpreter takes the first.
        arguments: those of the launch, or others that compile to the same code.
        options: a candidate's constants and launch options.

    Raises:
        triton.runtime.errors.OutOfResources: no candidate has the shared memory that it needs.
    """
    if triton.knobs.runtime.interpret:
        return candidates[0]
    kernel = kernel_of(candidates[0])
    specialized = tuple(
        [
            _as_compiled(argument, not parameter.do_not_specialize)
            for parameter, argument in zip(kernel.params, arguments, strict=False)
        ]
    )
    constants = tuple([tuple(options(tiles).values()) for tiles in candidates])
    key = (triton.runtime.driver.active.get_current_device(), kernel.fn, constants, specialized)
    chosen = _chosen.get(key)
    if chosen is None:
        chosen = _first_fitting(
            candidates, lambda tiles: kernel_of(tiles).warmup(*arguments, grid=(1,), **options(tiles))
        )
        _chosen[key] = chosen
    return chosen


def _as_compiled(argument: Any, specialized: bool) -> Hashable:
    """Facts of an argument that Triton compiles into a kernel: its kind and, of numbers, whether they are 1 or
    divisible by 16, unless they are not to be specialized."""
    if isinstance(argument, int):
        return argument.bit_length() > 31, specialized and (argument == 1, argument % 16 == 0)
    if isinstance(argument, tuple):
        # Numbers in a tuple are specialized whatever `do_not_specialize` says of it.
        return tuple([_as_compiled(part, True) for part in argument])
    if isinstance(argument, torch.Tensor):
        return argument.dtype, argument.data_ptr() % 16 == 0
    return None if argument is None else type(argument)


def _first_fitting(candidates: tuple[Tiles, ...], compile: Callable[[Tiles], Any]) -> Tiles:
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
