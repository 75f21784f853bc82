# SPDX-License-Identifier: MIT
"""Build backend for pip: setuptools, and nvcc's wheels where CONTAINER_KERNELS_NVCC asks for them."""

from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403 - the hooks that stay as they are

from . import nvcc
from .project import env


def get_requires_for_build_wheel(config_settings=None):
    return [*build_meta.get_requires_for_build_wheel(config_settings), *_nvcc_wheels()]


def get_requires_for_build_editable(config_settings=None):
    return [*build_meta.get_requires_for_build_editable(config_settings), *_nvcc_wheels()]


def _nvcc_wheels() -> list[str]:
    return nvcc.wheels() if env.value("CONTAINER_KERNELS_NVCC") == "pypi" else []
