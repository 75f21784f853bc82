# SPDX-License-Identifier: MIT
"""Builds the extension modules of container_kernels; the metadata is in pyproject.toml.

    pip install .                     the package, with the modules that this machine can build
    python setup.py build_cuda_emulator   the CUDA kernels for this machine's processor (for tests)

No torch header is included: torch is not needed here, and one build serves every version of it. A build that
cannot be done (no compiler, an error) leaves a package that installs and works without the extension, and the
reason in `container_kernels/_build_info.py`, which `python -m container_kernels` shows. The environment
variables are listed in `container_kernels/_env.py`.
"""

import sys
from pathlib import Path

from setuptools import Extension, setup

# A build backend does not put this folder there.
sys.path.insert(0, str(Path(__file__).resolve().parent))
from builder.setuptools_commands import BUILDERS, BuildCudaEmulator, BuildExtension

setup(
    ext_modules=[Extension(name, sources=[]) for name in BUILDERS],
    cmdclass={"build_ext": BuildExtension, "build_cuda_emulator": BuildCudaEmulator},
)
