# SPDX-License-Identifier: MIT
"""The compiled modules, imported once; a missing one leaves None and the reason. Nothing here raises."""

from types import ModuleType
from typing import Any

import torch  # noqa: F401 - first, so that the extension shares torch's OpenMP runtime

try:
    from container_kernels._build_info import RECORD as build_record
except ImportError:
    build_record: dict[str, Any] = {}


def _reason(module: str, error: ImportError) -> str:
    """The import error, and what the build wrote down about this module."""
    built = build_record.get(module, {}).get("reason")
    return f"{error}; build: {built or 'no record (pip install . writes one)'}"


cpu: ModuleType | None = None
why_no_cpu: str | None = None
try:
    from container_kernels import _C_cpu as cpu  # type: ignore[no-redef]
except ImportError as error:
    why_no_cpu = _reason("cpu", error)
