# SPDX-License-Identifier: MIT
"""The compiled modules, imported once, and the record of their build. Importing this never raises.

`cpu` is the module of the CPU kernels, or None; then `why_no_cpu` says why, else it is None. The same for `cuda` and
`why_no_cuda`, the CUDA kernels: the module is there on machines without a GPU too. `load_cuda_emulator` builds the CUDA
kernels for this machine's processor, for tests.
"""

import functools
import importlib.util
import subprocess
import sys
import sysconfig
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

# Before the extension, which then shares the OpenMP runtime that torch brings.
import torch

# ck::DType in csrc/common/types.h.
DTYPE_CODES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}

SOABI = sysconfig.get_config_var("SOABI") or sys.implementation.cache_tag


def _read_build_record() -> dict[str, Any]:
    """The record that setup.py wrote; empty where it never ran."""
    try:
        from . import _build_info
    except ImportError:
        return {}
    return _build_info.RECORD


def _import(name: str) -> tuple[ModuleType | None, str | None]:
    """The module `name` ("cpu", "cuda") and None, or None and the reason."""
    try:
        # Unlike `from … import`, this names the module that is missing on every Python.
        module = import_module(f"{__package__}._C_{name}")
    # Not ImportError alone: the module's own initialization may raise anything.
    except Exception as error:
        return None, f"{error}; {_about_build(name)}"
    return module, None


def _about_build(module: str) -> str:
    """The build's part in `module` not being there."""
    if not build_record:
        return "nothing was built here: pip install . builds it"
    if build_record["python"] != SOABI:
        return f"it was built for {build_record['python']}, this is {SOABI}: run pip install again"
    if build_record[module]["built"]:
        return f"it was built by {build_record[module]['compiler_version']}"
    return f"the build said: {build_record[module]['reason']}"


def load_cuda_emulator() -> ModuleType:
    """The CUDA kernels as C++ for this machine's processor: built, as far as they are out of date, and imported.

    Raises:
        RuntimeError: there is no source checkout around the package, or the build failed; the text says why.
    """
    module, why_not = _build_cuda_emulator()
    if module is None:
        raise RuntimeError(why_not)
    return module


@functools.cache
def _build_cuda_emulator() -> tuple[ModuleType | None, str | None]:
    """The module and None, or None and the reason; a build that failed once is not tried again."""
    setup = Path(__file__).resolve().parent.parent / "setup.py"
    if not (setup.exists() and (setup.parent / "csrc" / "cuda_emulator").exists()):
        return None, f"emulating the CUDA kernels needs a source checkout, found no {setup} with its csrc"
    command = [sys.executable, setup.name, "--quiet", "build_cuda_emulator"]
    done = subprocess.run(command, cwd=setup.parent, capture_output=True, text=True)
    if done.returncode:
        return (
            None,
            f"the CUDA kernels could not be built for this machine's processor, by {' '.join(command)}:\n{done.stderr}",
        )
    path = done.stdout.splitlines()[-1]
    spec = importlib.util.spec_from_file_location("_C_cuda_emulator", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module, None


build_record = _read_build_record()
cpu, why_no_cpu = _import("cpu")
cuda, why_no_cuda = _import("cuda")
