# SPDX-License-Identifier: MIT
"""Checks that need a GPU, as steps of two stages: `bash bench/gpu_check.sh`."""
