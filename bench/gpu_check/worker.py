# SPDX-License-Identifier: MIT
"""pytest plugin of the GPU check (-p bench.gpu_check.worker): a broken or hanging GPU costs one test, not all after it.

A worker of xdist ends when a kernel made the GPU unusable for its process or a test takes longer than `SECONDS`; xdist
names the test and begins another worker. Comparisons with float64 come first, in case the time is over before the end;
tests of the kernels on this machine's processor are left out where a GPU runs them.
"""

import faulthandler
import os

import pytest

SECONDS = 60
# pytest takes the descriptor of standard error over; this one stays.
_STDERR = os.dup(2)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    from container_kernels import _extension, usable_backends

    items.sort(key=lambda item: "matches_float64" not in item.name)
    if usable_backends()["cuda"] is None:
        _extension.load_cuda_emulator = _leave_out


def _leave_out():
    pytest.skip("runs the kernels on this machine's processor, which says nothing about the GPU")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item):
    is_worker = hasattr(item.config, "workerinput")
    if is_worker:
        faulthandler.dump_traceback_later(SECONDS, exit=True, file=_STDERR)
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()
        if is_worker and context_is_lost():
            os.write(_STDERR, f"{item.nodeid}: the GPU is lost to this process\n".encode())
            os._exit(3)


def context_is_lost() -> bool:
    """Whether the process can launch nothing any more; also finds what a test did not wait for."""
    import torch

    if not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False
