# SPDX-License-Identifier: MIT
"""Build of the extension modules, for setup.py. It needs setuptools, pybind11 and ninja, but no torch."""
