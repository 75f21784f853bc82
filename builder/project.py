# SPDX-License-Identifier: MIT
"""Folders of the project, and its environment variables."""

import importlib.util
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "csrc"
RECORD_FILE = Path("container_kernels", "_build_info.py")
SOABI = sysconfig.get_config_var("SOABI") or sys.implementation.cache_tag
MODULE_SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")
# Objects outlive a build, so that a repeat compiles only what changed; one folder for each Python ABI.
BUILD_DIR = ROOT / "build" / f"extension-{SOABI}"


def _load_env_module():
    """`container_kernels._env` without the package around it, which needs torch."""
    spec = importlib.util.spec_from_file_location("_env", ROOT / "container_kernels" / "_env.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


env = _load_env_module()
