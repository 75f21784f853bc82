# SPDX-License-Identifier: MIT
"""The compiled modules, imported once, and the record of their build. Importing this never raises.

`cpu` is the module of the CPU kernels, or None; then `why_no_cpu` says why, else it is None.
"""

import sys
import sysconfig
from importlib import import_module
from types import ModuleType
from typing import Any

# Before the extension, which then shares the OpenMP runtime that torch brings.
import torch

# ck::DType in csrc/common/types.h.
DTYPE_CODES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}

SOABI = sysconfig.get_config_var("SOABI") or sys.implementation.cache_tag


def _read_build_record() -> dict[str, Any]:
    """What setup.py wrote down; empty where it never ran."""
    try:
        from . import _build_info
    except ImportError:
        return {}
    return _build_info.RECORD


def _import_cpu() -> tuple[ModuleType | None, str | None]:
    """The CPU module and None, or None and the reason."""
    try:
        # Unlike `from … import`, this names the module that is missing on every Python.
        module = import_module(f"{__package__}._C_cpu")
    # Not ImportError alone: the module's own initialization may raise anything.
    except Exception as error:
        return None, f"{error}; {_about_build('cpu')}"
    return module, None


def _about_build(module: str) -> str:
    """What the build has to do with `module` not being there."""
    if not build_record:
        return "nothing was built here: pip install . builds it"
    if build_record["python"] != SOABI:
        return f"it was built for {build_record['python']}, this is {SOABI}: run pip install again"
    if build_record[module]["built"]:
        return f"it was built by {build_record[module]['compiler_version']}"
    return f"the build said: {build_record[module]['reason']}"


build_record = _read_build_record()
cpu, why_no_cpu = _import_cpu()
