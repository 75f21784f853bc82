# SPDX-License-Identifier: MIT
"""Tasks that the programs train, one folder each. A task imports `training` and no other task."""
