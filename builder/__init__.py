# SPDX-License-Identifier: MIT
"""What setup.py builds the extension modules with. It needs setuptools, pybind11 and ninja, but no torch."""
