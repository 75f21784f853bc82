# SPDX-License-Identifier: MIT
"""Limits of the GPU that a Triton launch goes to, on which its tiles depend."""

from functools import cache
from typing import NamedTuple

import triton


class Gpu(NamedTuple):
    """Compute capability as one number (90 is 9.0), and the bytes of shared memory that one block may have."""

    capability: int
    shared_memory: int


# The interpreter has no limits; its tiles are those of the smallest GPU that is served.
SMALLEST = Gpu(80, 99 * 1024)


def current_gpu() -> Gpu:
    """Limits of Triton's current device: call it where `device_of` has set the device of the launch."""
    if triton.knobs.runtime.interpret:
        return SMALLEST
    driver = triton.runtime.driver.active
    return _limits(driver, driver.get_current_device())


@cache
def _limits(driver, device: int) -> Gpu:
    properties = driver.utils.get_device_properties(device)
    return Gpu(int(driver.get_current_target().arch), properties["max_shared_mem"])
