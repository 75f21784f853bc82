# SPDX-License-Identifier: MIT
"""Every environment variable that the package or its build reads: the only place that looks at them.

Standard library only, since setup.py loads this file before anything is installed.
"""

import os
from typing import NamedTuple


class Variable(NamedTuple):
    default: str | None
    meaning: str


BUILD_VARIABLES = {
    "CONTAINER_KERNELS_BUILD_EXT": Variable("1", "0 installs without the C++ extension"),
    "CONTAINER_KERNELS_BUILD_CUDA": Variable("1", "0 installs without the CUDA module, also where there is nvcc"),
    "CONTAINER_KERNELS_REQUIRE_EXT": Variable(
        "0", "1 makes an extension that cannot be built an error (the CUDA module where there is no nvcc is none)"
    ),
    "CONTAINER_KERNELS_CUDA_ARCHS": Variable(
        "80+100+120+PTX;90a",
        "GPUs to compile for: compute capabilities, with +PTX also later ones; those joined by + share the first one's "
        "features; or native, this machine's",
    ),
    "CONTAINER_KERNELS_NVCC": Variable(
        "system", "system, or pypi: a copy of nvcc from PyPI (100 MB), for the build alone"
    ),
    "CXX": Variable(None, "C++ compiler, with arguments if need be; else g++, clang++ or c++ on PATH"),
    "CXXFLAGS": Variable("", "added to every C++ compilation"),
    "LDFLAGS": Variable("", "added to the link"),
    "MAX_JOBS": Variable(None, "parallel compilations; else from the cores and the free memory"),
    "CUDA_HOME": Variable(None, "CUDA toolkit whose nvcc is used; then CUDA_PATH, PATH, /usr/local/cuda"),
    "CUDA_PATH": Variable(None, "the same, looked at after CUDA_HOME"),
}
RUN_VARIABLES = {
    "CONTAINER_KERNELS_BACKEND": Variable(None, "backend to use in place of the automatic choice"),
    "TRITON_INTERPRET": Variable("0", "1 runs Triton kernels on CPU tensors, slowly, for tests (Triton's own)"),
}
VARIABLES = BUILD_VARIABLES | RUN_VARIABLES

_TRUE = ("1", "true", "yes", "on", "y")
_FALSE = ("0", "false", "no", "off", "n")


def value(name: str) -> str | None:
    """The variable's value, or its default; an empty value counts as not set.

    Raises:
        KeyError: the name is not in ``VARIABLES``.
    """
    default = VARIABLES[name].default
    return os.environ.get(name) or default


def flag(name: str) -> bool:
    """The variable as a truth value: 1, true, yes, on or 0, false, no, off in any case.

    Raises:
        KeyError: the name is not in ``VARIABLES``.
        ValueError: the value is none of these.
    """
    text = (value(name) or "0").strip().lower()
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    raise ValueError(f"{name} must be one of {', '.join(_TRUE + _FALSE)}, got {os.environ[name]!r}")
