# SPDX-License-Identifier: MIT
"""The CUDA kernels on this machine's processor: the same .cu files, a block's threads taking turns."""

from collections.abc import Iterator
from contextlib import contextmanager

from .. import _extension
from ..ops.dispatch.backend import cuda_emulated

ORDERS = ("ascending", "descending")

_order = "ascending"


@contextmanager
def emulate_cuda(*, order: str = "ascending") -> Iterator[None]:
    """Inside the `with` block `backend="cuda"` takes CPU tensors and runs the CUDA kernels on this machine's processor.

    Slow, and for tests: reads of shared memory that nothing was written to give NaN, and a barrier or a wait that is
    missing, a wrong shuffle or a deadlock is an error that names the kernel and the line. Needs a source checkout and
    a C++ compiler; the first use in a process builds what is out of date. "cuda" has to be asked for, by `backend=` or
    `use_backend`: it does not become the automatic choice. Holds for the whole process, as `use_backend` does.

    Args:
        order: "ascending" or "descending", the order in which the threads of a block take turns. A result that
            depends on it is a missing barrier's.

    Raises:
        ValueError: `order` is neither.
        RuntimeError: the kernels could not be built here; the text says why.
    """
    global _order
    if order not in ORDERS:
        raise ValueError(f"order: expected one of {', '.join(ORDERS)}, got {order!r}")
    module = _extension.load_cuda_emulator()
    previous, _order = _order, order
    module.set_thread_order(order)
    try:
        with cuda_emulated():
            yield
    finally:
        _order = previous
        module.set_thread_order(previous)
